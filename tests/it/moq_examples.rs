//! The examples of Media over QUIC, run together: a relay inside a program, and clocks that publish and subscribe there.

use std::time::Duration;

use crate::gateway::temp_dir;
use crate::probe::{SOON, mesh, stop, wait};

#[expect(dead_code, reason = "its `main` is not called")]
#[path = "../../examples/moq_clock.rs"]
mod moq_clock;

#[expect(dead_code, reason = "its `main` is not called")]
#[path = "../../examples/moq_relay.rs"]
mod moq_relay;

/// What the example says, called so.
fn clock(arguments: &[&str]) -> Vec<String> {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    let mut said = Vec::new();
    let mut say = |line| said.push(line);
    let run = moq_clock::run(&arguments, &mut say);
    let within = SOON + Duration::from_secs(5);
    wait(async { tokio::time::timeout(within, run).await }).expect("in time").expect("the example runs");
    said
}

#[test]
fn a_clock_ticks_through_the_relay_of_the_examples() {
    let mesh = mesh(2);
    let (server, certificate) = moq_relay::start(&mesh, "127.0.0.1:0".parse().unwrap()).expect("a relay");
    let folder = temp_dir();
    let file = folder.join("cert.pem");
    std::fs::write(&file, certificate.to_pem().expect("PEM")).expect("written");
    let (to, file) = (server.local_addr().to_string(), file.display().to_string());
    let said = std::thread::scope(|scope| {
        // It ticks as long as somebody may still be on the way.
        let publisher = scope.spawn(|| clock(&["publish", &to, &file, "5"]));
        let said = clock(&["subscribe", &to, &file, "2"]);
        assert_eq!(publisher.join().expect("no panic"), [format!("moqt-20 with {to}")]);
        said
    });
    let [first, ticks @ ..] = &said[..] else { panic!("{said:?}") };
    assert_eq!(*first, format!("moqt-20 with {to}"));
    assert_eq!(ticks.len(), 2, "{said:?}");
    for tick in ticks {
        let (minute, second) = tick.split_once(':').expect("a time");
        assert!(minute.len() == 2 && second.parse::<u8>().is_ok_and(|second| second < 60), "{tick}");
    }
    server.stop();
    stop(&mesh);
    let _gone = std::fs::remove_dir_all(&folder);
}

#[cfg(feature = "http")]
#[test]
fn a_clock_ticks_over_webtransport_too() {
    let web = "[[listener]]\nname = \"web\"\nlisten = \"127.0.0.1:0\"\nprotocol = \"http\"\ncertificate = \"local\"\n\
               [[listener.route]]\npath = \"/moq\"\nwebtransport = true\nservice = \"moq\"\n";
    let running = crate::gateway::Running::start(&crate::moq::relay(1, web));
    let file = crate::quic_gateway::pem("good.pem").display().to_string();
    let (over_quic, url) =
        (format!("moqt://{}", running.address("moq")), format!("https://{}/moq", running.address("web")));
    std::thread::scope(|scope| {
        let publisher = scope.spawn(|| clock(&["publish", &over_quic, &file, "4"]));
        let said = clock(&["subscribe", &url, &file, "1"]);
        assert_eq!(publisher.join().expect("no panic").len(), 1);
        assert_eq!(said.len(), 2, "{said:?}");
    });
    assert_eq!(running.totals().family("moq_sessions_failed"), 0);
}
