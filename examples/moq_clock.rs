//! cargo run --example moq_clock -- publish 127.0.0.1:4443 cert.pem
//! cargo run --example moq_clock -- subscribe 127.0.0.1:4443 cert.pem
//! cargo run --example moq_clock -- subscribe https://127.0.0.1:8443/moq cert.pem
//!
//! A clock over a relay of Media over QUIC (`cargo run --example moq_relay`, or a gateway): each second is an object, each
//! minute a group. A relay is an address, reached over QUIC, or a URL, `https://` for WebTransport. With a number as the last
//! argument it ends after so many seconds.
#![allow(clippy::print_stdout, reason = "an example talks to its reader")]

use std::error::Error;
use std::time::Duration;

use portway::actors::clock::since_1970;
use portway::actors::{Mesh, MeshConfig};
use portway::transports::moq::model_names::FullTrackName;
use portway::transports::moq::model_params::{Params, Properties};
use portway::transports::moq::{ClientOptions, MoqClient, Publication, SubgroupWriter, Subscribing};
use portway::transports::quic::{ClientSettings, QuicClient};
use portway::transports::tls;

const USAGE: &str = "say publish or subscribe, the relay's address, and a file with its certificate";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    run(&arguments, &mut |line| println!("{line}")).await
}

/// What the command line says, line by line.
pub(crate) async fn run(arguments: &[String], say: &mut dyn FnMut(String)) -> Result<(), Box<dyn Error>> {
    let [what, to, trust, rest @ ..] = arguments else { return Err(USAGE.into()) };
    let seconds = rest.first().map_or(Ok(u64::MAX), |text| text.parse())?;
    let mesh = Mesh::start(MeshConfig::default())?;
    let quic = QuicClient::start(&mesh, ClientSettings::new("clock"))?;
    let mut tls = tls::ClientSettings::new(tls::PeerName::new("localhost"));
    tls.roots = tls::Roots::File(trust.into());
    let (to, options) = match to.contains("://") {
        true => {
            let options = ClientOptions::of_url(to)?;
            (options.authority.clone().unwrap_or_default(), options)
        }
        false => (to.clone(), ClientOptions::default()),
    };
    let client = MoqClient::connect(&quic, to.parse()?, tls, options).await?;
    say(format!("{} with {to}", client.draft()));
    let track = FullTrackName::of(["clock"], "now")?;
    match what.as_str() {
        "publish" => publish(&client, track, seconds).await?,
        "subscribe" => subscribe(&client, track, seconds, say).await?,
        _ => return Err(USAGE.into()),
    }
    // The session ends with its last handle, once all was delivered.
    drop(client);
    quic.stop();
    mesh.stop()?;
    Ok(())
}

async fn publish(client: &MoqClient, track: FullTrackName, seconds: u64) -> Result<(), Box<dyn Error>> {
    let publisher = client.publish(track, Publication::default()).await?;
    let mut minute: Option<(u64, SubgroupWriter)> = None;
    for _ in 0..seconds {
        let now = since_1970();
        let (group, second) = (now.as_secs() / 60, now.as_secs() % 60);
        let mut writer = match minute.take() {
            Some((of, writer)) if of == group => writer,
            Some((_, before)) => {
                before.finish().await?;
                publisher.group(group).await?
            }
            None => publisher.group(group).await?,
        };
        writer.write_object(second, &Properties::default(), format!("{:02}:{second:02}", group % 60).into()).await?;
        minute = Some((group, writer));
        tokio::time::sleep(Duration::from_secs(1).saturating_sub(Duration::from_nanos(now.subsec_nanos().into())))
            .await;
    }
    if let Some((_, writer)) = minute {
        writer.finish().await?;
    }
    publisher.finish().await?;
    Ok(())
}

async fn subscribe(
    client: &MoqClient,
    track: FullTrackName,
    seconds: u64,
    say: &mut dyn FnMut(String),
) -> Result<(), Box<dyn Error>> {
    // The relay waits for a publisher, if there is none yet.
    let params = Params { rendezvous_timeout: Some(Duration::from_secs(30)), ..Params::default() };
    let mut clock = client.subscribe(track, Subscribing::from(params)).await?;
    for _ in 0..seconds {
        let Some(object) = clock.next().await? else { break };
        say(String::from_utf8_lossy(&object.payload).into_owned());
    }
    Ok(())
}
