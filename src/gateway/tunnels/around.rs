//! What tunnels need of the rest of the gateway, with and without WireGuard in the build.

use std::path::PathBuf;

use crate::actors::Mesh;
use crate::gateway::passed::Passed;
use crate::gateway::sites::Certificates;
use crate::gateway::upstreams::Upstreams;
use crate::memory::Budget;

/// For a start or a reload.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "wireguard"), expect(dead_code, reason = "there is nothing to start"))]
pub(in crate::gateway) struct Around<'a> {
    pub(in crate::gateway) mesh: &'a Mesh,
    pub(in crate::gateway) upstreams: &'a Upstreams,
    pub(in crate::gateway) certificates: &'a Certificates,
    /// Those that a reload replaces.
    pub(in crate::gateway) before: Option<(&'a Upstreams, &'a Certificates)>,
    pub(in crate::gateway) budget: &'a Budget,
    /// Sockets of the service manager.
    pub(in crate::gateway) passed: &'a Passed,
    /// The program that makes private networks, if there is one.
    pub(in crate::gateway) helper: Option<&'a PathBuf>,
}
