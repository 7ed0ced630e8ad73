//! A page in headless Chromium that subscribes over WebTransport to what a native client publishes over QUIC.

use bytes::Bytes;
use portway::transports::moq::model::Draft;
use portway::transports::moq::model_names::FullTrackName;
use portway::transports::moq::{Publication, Subgroup};

use crate::gateway::Running;
use crate::http3_interop::{Browser, Pages, Short};
use crate::moq_client::{Clients, group, soon};
use crate::probe::{eventually, wait};

/// Tells what the page says, once it has said its last.
const TELLS: &str = r#"<script>
new MutationObserver(() => {
  const said = document.getElementById("out").textContent;
  if (/over|failed|refused/.test(said)) fetch("/done?" + said.trim().split("\n").sort().join("|"));
}).observe(document.getElementById("out"), {childList: true});
</script>"#;

#[test]
fn a_page_subscribes_to_what_a_native_publisher_sends() {
    let short = Short::make();
    let port = crate::gateway::free().port();
    let plain = crate::gateway::free();
    let page = include_str!("../../examples/moq_watch.html").to_owned() + TELLS;
    let pages = Pages::serve(move || page.clone());
    let text = format!(
        "version = 1\n[runtime]\narbiters = 2\n{}\
         [[listener]]\nname = \"moq\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"moq\"\ncertificate = \"local\"\n\
         [[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:{port}\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
         [[listener.route]]\npath = \"/moq\"\nwebtransport = true\nservice = \"moq\"\n\
         [[listener]]\nname = \"plain\"\nlisten = \"{plain}\"\nprotocol = \"http\"\n\
         [[listener.route]]\npath_exact = \"/certificate.sha256\"\nservice = \"certificate_sha256\"\n\
         response_set = \"access-control-allow-origin: *\"\n",
        short.text()
    );
    let running = Running::start(&text);
    let clients = Clients::trusting(short.cert());
    let (client, publisher) = wait(async {
        let client = clients.join(running.address("moq"), Draft::D20).await;
        let track = FullTrackName::of(["page"], "objects").expect("a track");
        let publisher = client.publish(track, Publication::default()).await.expect("accepted");
        group(&publisher, 0, &[Bytes::from("zero"), Bytes::from("one")]).await;
        (client, publisher)
    });
    let asked = format!(
        "relay=https://127.0.0.1:{port}/moq&hash=http://{plain}/certificate.sha256&namespace=page&track=objects"
    );
    let browser = Browser::open(&format!("http://{}/page?{asked}", pages.address), &[]);
    let subscribed = || running.totals().get("moq_streams_out", "web", "") >= 1;
    eventually_long("the page has subscribed", subscribed);
    wait(async {
        let mut writer = publisher.subgroup(Subgroup { subgroup: 4, ..Subgroup::of(1) }).await.expect("a subgroup");
        for payload in ["two", "three"] {
            writer.write(payload).await.expect("written");
        }
        writer.finish().await.expect("finished");
        soon("the end", publisher.finish()).await.expect("finished");
        drop(client);
    });
    let said = pages.report(&browser);
    assert_eq!(said, "0/0:%20zero|0/1:%20one|1/0:%20two|1/1:%20three|over|subscribed".replace("%20", " "));
    drop(browser);
    eventually("the session is over", || running.totals().family("moq_sessions_ended") >= 1);
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}

/// A browser takes its time to start.
fn eventually_long(what: &str, mut is: impl FnMut() -> bool) {
    let until = crate::probe::now() + std::time::Duration::from_secs(50);
    while !is() {
        assert!(crate::probe::now() < until, "not in time: {what}");
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
}
