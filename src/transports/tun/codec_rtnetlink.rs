//! The few rtnetlink messages (RFC 3549, netlink(7), rtnetlink(7)) that give an interface its life: up, MTU, addresses,
//! routes. Each asks for an acknowledgement; [`answer`] reads it.
//!
//! Pure: the bytes of one message out, the bytes of one answer in. Numbers are the kernel's, in its byte order.

use std::net::IpAddr;

use super::codec_request::Prefix;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_NEWRULE: u16 = 32;
const RTM_DELRULE: u16 = 33;

const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_REPLACE: u16 = 0x100;
const NLM_F_CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

const IFLA_MTU: u16 = 4;
const IFLA_TXQLEN: u16 = 13;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
const IFF_UP: u32 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// No duplicate address detection: nobody else is on this link, and the address would be unusable for a second.
const IFA_F_NODAD: u8 = 2;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTPROT_STATIC: u8 = 4;
const RTN_UNICAST: u8 = 1;
const RTN_LOCAL: u8 = 2;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const SCOPE_UNIVERSE: u8 = 0;
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

const RTA_TABLE: u16 = 15;
/// A table whose number is in an attribute.
const TABLE_NONE: u8 = 0;

const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_SUPPRESS_PREFIXLEN: u16 = 14;
const FRA_TABLE: u16 = 15;
const FR_ACT_TO_TBL: u8 = 1;
const FIB_RULE_INVERT: u32 = 2;

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// A message under construction.
struct Message(Vec<u8>);

impl Message {
    fn new(kind: u16, flags: u16) -> Self {
        let mut bytes = Vec::with_capacity(96);
        bytes.extend_from_slice(&0u32.to_ne_bytes());
        bytes.extend_from_slice(&kind.to_ne_bytes());
        bytes.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | flags).to_ne_bytes());
        // Sequence number and sender: one question at a time on a socket of its own needs neither.
        bytes.extend_from_slice(&[0; 8]);
        Self(bytes)
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    fn done(mut self) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        if let Some(first) = self.0.first_chunk_mut() {
            *first = length.to_ne_bytes();
        }
        self.0
    }
}

/// Sets an interface up; with an MTU and a queue of this many packets towards us unless they are 0.
pub(super) fn link_up(index: u32, mtu: u16, queue: u32) -> Vec<u8> {
    let mut message = Message::new(RTM_NEWLINK, 0)
        .raw(&[0; 4])
        .raw(&index.to_ne_bytes())
        .raw(&IFF_UP.to_ne_bytes())
        .raw(&IFF_UP.to_ne_bytes());
    if mtu > 0 {
        message = message.attribute(IFLA_MTU, &u32::from(mtu).to_ne_bytes());
    }
    if queue > 0 {
        message = message.attribute(IFLA_TXQLEN, &queue.to_ne_bytes());
    }
    message.done()
}

/// No IPv6 address but those it is given: the kernel makes none of its own, and looks for no router by it.
pub(super) fn no_own_addresses(index: u32) -> Vec<u8> {
    let mode = Message(Vec::new()).attribute(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
    let family = Message(Vec::new()).attribute(u16::from(AF_INET6), &mode.0);
    Message::new(RTM_NEWLINK, 0)
        .raw(&[0; 4])
        .raw(&index.to_ne_bytes())
        .raw(&[0; 8])
        .attribute(IFLA_AF_SPEC, &family.0)
        .done()
}

/// Gives an interface an address, with the network it is in.
pub(super) fn address(index: u32, prefix: Prefix) -> Vec<u8> {
    let flags = if prefix.address.is_ipv6() { IFA_F_NODAD } else { 0 };
    let octets = octets(prefix.address);
    Message::new(RTM_NEWADDR, NLM_F_CREATE | NLM_F_REPLACE)
        .raw(&[family(prefix.address), prefix.bits, flags, SCOPE_UNIVERSE])
        .raw(&index.to_ne_bytes())
        .attribute(IFA_LOCAL, octets.as_ref())
        .attribute(IFA_ADDRESS, octets.as_ref())
        .done()
}

/// Where packets of a route go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Route {
    /// Out of the interface.
    Through,
    /// To this machine itself, as if all addresses of the prefix were its own.
    Local,
}

/// A route to `prefix` by way of an interface.
pub(super) fn route(index: u32, prefix: Prefix, way: Route) -> Vec<u8> {
    route_message(Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE), index, prefix, way)
}

/// Takes a route through the interface away again.
pub(super) fn without_route(index: u32, prefix: Prefix) -> Vec<u8> {
    route_message(Message::new(RTM_DELROUTE, 0), index, prefix, Route::Through)
}

fn route_message(message: Message, index: u32, prefix: Prefix, way: Route) -> Vec<u8> {
    let (table, scope, kind) = match way {
        Route::Through if prefix.address.is_ipv6() => (TABLE_MAIN, SCOPE_UNIVERSE, RTN_UNICAST),
        Route::Through => (TABLE_MAIN, SCOPE_LINK, RTN_UNICAST),
        Route::Local => (TABLE_LOCAL, SCOPE_HOST, RTN_LOCAL),
    };
    message
        .raw(&[family(prefix.address), prefix.bits, 0, 0, table, RTPROT_STATIC, scope, kind])
        .raw(&0u32.to_ne_bytes())
        .attribute(RTA_DST, octets(prefix.network()).as_ref())
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .done()
}

/// A route to everything, of one family, by way of an interface, in a table of its own.
pub(super) fn default_route(index: u32, v6: bool, table: u32) -> Vec<u8> {
    let (family, scope) = if v6 { (AF_INET6, SCOPE_UNIVERSE) } else { (AF_INET, SCOPE_LINK) };
    Message::new(RTM_NEWROUTE, NLM_F_CREATE | NLM_F_REPLACE)
        .raw(&[family, 0, 0, 0, TABLE_NONE, RTPROT_STATIC, scope, RTN_UNICAST])
        .raw(&0u32.to_ne_bytes())
        .attribute(RTA_OIF, &index.to_ne_bytes())
        .attribute(RTA_TABLE, &table.to_ne_bytes())
        .done()
}

/// Which table a packet's route is looked up in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Rule {
    /// The main table, but for its default routes.
    MainWithoutDefault,
    /// This table, for packets without this mark.
    Unmarked {
        /// The mark.
        mark: u32,
        /// The table.
        table: u32,
    },
}

/// Adds a rule of this priority (lower comes first), or takes it away.
pub(super) fn rule(add: bool, v6: bool, priority: u32, rule: Rule) -> Vec<u8> {
    let message = if add { Message::new(RTM_NEWRULE, NLM_F_CREATE) } else { Message::new(RTM_DELRULE, 0) };
    let (table, flags) = match rule {
        Rule::MainWithoutDefault => (u32::from(TABLE_MAIN), 0),
        Rule::Unmarked { table, .. } => (table, FIB_RULE_INVERT),
    };
    let message = message
        .raw(&[
            if v6 { AF_INET6 } else { AF_INET },
            0,
            0,
            0,
            u8::try_from(table).unwrap_or(TABLE_NONE),
            0,
            0,
            FR_ACT_TO_TBL,
        ])
        .raw(&flags.to_ne_bytes())
        .attribute(FRA_PRIORITY, &priority.to_ne_bytes())
        .attribute(FRA_TABLE, &table.to_ne_bytes());
    match rule {
        Rule::MainWithoutDefault => message.attribute(FRA_SUPPRESS_PREFIXLEN, &0u32.to_ne_bytes()),
        Rule::Unmarked { mark, .. } => message.attribute(FRA_FWMARK, &mark.to_ne_bytes()),
    }
    .done()
}

/// What the kernel said: nothing wrong, or this errno.
///
/// # Errors
/// The errno; 0 for an answer that is none.
pub(super) fn answer(bytes: &[u8]) -> Result<(), i32> {
    let kind = bytes.get(4..6).and_then(|b| b.try_into().ok()).map(u16::from_ne_bytes);
    let code = bytes.get(HEADER..HEADER + 4).and_then(|b| b.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(code.saturating_neg()),
        _ => Err(0),
    }
}

fn family(address: IpAddr) -> u8 {
    if address.is_ipv6() { AF_INET6 } else { AF_INET }
}

enum Octets {
    V4([u8; 4]),
    V6([u8; 16]),
}

impl AsRef<[u8]> for Octets {
    fn as_ref(&self) -> &[u8] {
        match self {
            Self::V4(octets) => octets,
            Self::V6(octets) => octets,
        }
    }
}

fn octets(address: IpAddr) -> Octets {
    match address {
        IpAddr::V4(address) => Octets::V4(address.octets()),
        IpAddr::V6(address) => Octets::V6(address.octets()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    #[test]
    fn messages_say_their_length_and_keep_attributes_aligned() {
        for bytes in [
            link_up(7, 1420, 1000),
            link_up(1, 0, 0),
            no_own_addresses(7),
            address(7, "10.0.0.1/24".parse().unwrap()),
            address(7, "fd00::1/64".parse().unwrap()),
            route(7, "10.1.2.3/16".parse().unwrap(), Route::Through),
            route(1, "::/0".parse().unwrap(), Route::Local),
            without_route(7, "10.1.0.0/16".parse().unwrap()),
            default_route(7, true, 51_820),
            rule(true, false, 1, Rule::MainWithoutDefault),
            rule(false, true, 2, Rule::Unmarked { mark: 1, table: 51_820 }),
        ] {
            assert_eq!(number(&bytes, 0) as usize, bytes.len());
            assert_eq!(bytes.len() % 4, 0);
        }
    }

    #[test]
    fn a_route_names_the_network_and_not_a_host_in_it() {
        let bytes = route(7, "10.1.2.3/16".parse().unwrap(), Route::Through);
        assert_eq!(&bytes[16..24], &[AF_INET, 16, 0, 0, TABLE_MAIN, RTPROT_STATIC, SCOPE_LINK, RTN_UNICAST]);
        assert_eq!(&bytes[32..36], &[10, 1, 0, 0]);
        assert_eq!(number(&bytes, 40), 7);
        let local = route(1, "::/0".parse().unwrap(), Route::Local);
        assert_eq!(&local[16..24], &[AF_INET6, 0, 0, 0, TABLE_LOCAL, RTPROT_STATIC, SCOPE_HOST, RTN_LOCAL]);
    }

    #[test]
    fn an_answer_is_fine_an_errno_or_none() {
        let mut bytes = vec![0; 36];
        bytes[4] = 2;
        assert_eq!(answer(&bytes), Ok(()));
        bytes[16..20].copy_from_slice(&(-17i32).to_ne_bytes());
        assert_eq!(answer(&bytes), Err(17));
        assert_eq!(answer(&bytes[..18]), Err(0));
        assert_eq!(answer(&[]), Err(0));
        bytes[16..20].copy_from_slice(&i32::MIN.to_ne_bytes());
        assert_eq!(answer(&bytes), Err(i32::MAX));
    }
}
