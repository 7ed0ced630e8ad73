//! What routes demand of requests and change in them: limits, passwords, tokens, headers, paths, files.

use std::net::{SocketAddr, TcpStream};

#[expect(dead_code, reason = "its `main` is not called")]
#[path = "../../examples/http_middleware.rs"]
mod http_middleware;

use crate::gateway::{Running, temp_dir};
use crate::http::{Client, Server, config, header};
use crate::probe::SOON;

fn asked(client: &mut Client, path: &str, fields: &str) -> (u16, String, Vec<u8>) {
    client.send(format!("GET {path} HTTP/1.1\r\nhost: a.example\r\n{fields}\r\n"));
    client.answer()
}

/// A client from an address of our own choice.
fn client_from(source: [u8; 4], to: SocketAddr) -> Client {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from((source, 0)).into()).unwrap();
    socket.connect(&to.into()).unwrap();
    let stream: TcpStream = socket.into();
    stream.set_read_timeout(Some(SOON)).unwrap();
    Client(std::io::BufReader::new(stream))
}

#[test]
fn headers_and_paths_are_changed_by_routes() {
    let server = Server::start();
    let edits = "path = \"/api\"\nrewrite = \"/v2\"\nrequest_set = [\"x-set: 1\", \"host: inner.example\"]\n\
                 request_add = \"x-add: 2\"\nrequest_remove = [\"cookie\"]\n\
                 response_set = \"x-frame-options: DENY\"\nresponse_add = [\"x-b: 1\", \"x-b: 2\"]\n\
                 response_remove = \"content-type\"\n\
                 [[listener.route]]\npath_regex = \"^/u/([a-z]+)/?$\"\nrewrite = \"/users/$1\"\nupstream = \"app\"\n\
                 [[listener.route]]\npath_exact = \"/one\"\nrewrite = \"/two\"\nupstream = \"app\"\n\
                 [[listener.route]]\npath_regex = \"^/up/(.*)$\"\nrewrite = \"/../$1\"\nupstream = \"app\"\n";
    let gateway = Running::start(&config(server.address, "", edits));
    let mut client = Client::to(gateway.address("web"));
    let (status, head, _) = asked(&mut client, "/api/x?q=1", "cookie: a=b\r\nx-set: 0\r\nx-add: 1\r\n");
    assert_eq!(status, 200);
    assert_eq!((header(&head, "x-frame-options"), header(&head, "content-type")), (Some("DENY"), None));
    assert_eq!(head.matches("x-b: ").count(), 2, "{head}");
    let seen = server.heads().remove(0);
    assert!(seen.starts_with("GET /v2/x?q=1 HTTP/1.1\r\n"), "{seen}");
    assert_eq!((header(&seen, "cookie"), header(&seen, "x-set")), (None, Some("1")));
    assert_eq!((header(&seen, "host"), header(&seen, "x-forwarded-host")), (Some("inner.example"), Some("a.example")));
    assert_eq!(seen.to_ascii_lowercase().matches("x-add: ").count(), 2, "{seen}");
    for (path, seen) in [("/api", "/v2"), ("/u/bob/", "/users/bob"), ("/one?x", "/two?x")] {
        assert_eq!(client.get(path).0, 200);
        let last = server.heads().pop().unwrap();
        assert!(last.starts_with(&format!("GET {seen} ")), "{last}");
    }
    let before = server.heads().len();
    assert_eq!(client.get("/up/x").0, 400, "no rewrite leads out");
    assert_eq!(server.heads().len(), before);
}

#[test]
fn who_asks_too_often_waits_and_nobody_else_does() {
    let server = Server::start();
    let limits = "path = \"/own\"\nrate = 3\nrate_per = \"1h\"\n\
                  [[listener.route]]\nname = \"together\"\npath = \"/together\"\nrate = 2\nrate_per = \"1h\"\n\
                  rate_by = \"route\"\nupstream = \"app\"\n\
                  [[listener.route]]\npath = \"/free\"\nupstream = \"app\"\n";
    let gateway = Running::start(&config(server.address, "", limits));
    let mut client = client_from([127, 0, 0, 2], gateway.address("web"));
    let mut neighbour = client_from([127, 0, 0, 3], gateway.address("web"));
    for _ in 0..3 {
        assert_eq!(client.get("/own").0, 200);
    }
    let (status, head, _) = client.get("/own");
    let wait: u64 = header(&head, "retry-after").unwrap().parse().unwrap();
    assert_eq!(status, 429);
    assert!((1_000..=1_200).contains(&wait), "a third of an hour: {wait}");
    gateway.counts("http_denied", "web/all", "rate", 1);
    assert_eq!(client_from([127, 0, 0, 2], gateway.address("web")).get("/own").0, 429, "another connection, the same");
    assert_eq!((client.get("/free").0, neighbour.get("/own").0), (200, 200));
    assert_eq!((client.get("/together").0, neighbour.get("/together").0), (200, 200));
    assert_eq!((client.get("/together").0, neighbour.get("/together").0), (429, 429));
    gateway.counts("http_denied", "web/together", "rate", 2);
    assert_eq!(server.heads().iter().filter(|head| head.starts_with("GET /own")).count(), 4);
}

#[test]
fn passwords_are_asked_for_and_checked() {
    let server = Server::start();
    let dir = temp_dir();
    let file = dir.join("users");
    std::fs::write(&file, format!("bob:{}\n", bcrypt::hash("open sesame", 5).unwrap())).unwrap();
    let text = config(server.address, "", &format!("basic_auth = {file:?}\nrequest_remove = \"authorization\""));
    let gateway = Running::start(&(text + "[[listener.route]]\npath = \"/free\"\nupstream = \"app\"\n"));
    let mut client = Client::to(gateway.address("web"));
    let mut neighbour = Client::to(gateway.address("web"));
    let (status, head, _) = client.get("/");
    assert_eq!((status, header(&head, "www-authenticate")), (401, Some("Basic realm=\"all\", charset=\"UTF-8\"")));
    gateway.counts("http_denied", "web/all", "credentials_missing", 1);
    // bob:open sesame, bob:sesame, eve:open sesame.
    let ask = |client: &mut Client, what: &str| asked(client, "/", &format!("authorization: Basic {what}\r\n")).0;
    assert_eq!(ask(&mut client, "Ym9iOnNlc2FtZQ=="), 401);
    assert_eq!(ask(&mut client, "ZXZlOm9wZW4gc2VzYW1l"), 401);
    gateway.counts("http_denied", "web/all", "credentials_wrong", 2);
    assert_eq!(neighbour.get("/free").0, 200);
    assert!(server.heads().iter().all(|head| head.starts_with("GET /free ")), "nobody else came through");
    for _ in 0..20 {
        assert_eq!(ask(&mut client, "Ym9iOm9wZW4gc2VzYW1l"), 200);
    }
    assert!(server.heads().iter().all(|head| header(head, "authorization").is_none()));
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn tokens_are_checked() {
    let server = Server::start();
    let key = "0123456789abcdef0123456789abcdef";
    let demands =
        format!("jwt_algorithm = \"HS256\"\njwt_key = \"{key}\"\njwt_issuer = \"me\"\njwt_audience = \"you\"");
    let gateway = Running::start(&config(server.address, "", &demands));
    let mut client = Client::to(gateway.address("web"));
    let signed = |exp: u64, issuer: &str, key: &str| {
        let claims = serde_json::json!({"exp": exp, "iss": issuer, "aud": "you"});
        let key = jsonwebtoken::EncodingKey::from_secret(key.as_bytes());
        jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).unwrap()
    };
    let mut ask = |token: &str| asked(&mut client, "/", &format!("authorization: Bearer {token}\r\n")).0;
    let far = 99_999_999_999;
    assert_eq!(ask(&signed(far, "me", key)), 200);
    for bad in [signed(1_000, "me", key), signed(far, "eve", key), signed(far, "me", &key.replace('0', "1"))] {
        assert_eq!(ask(&bad), 401);
    }
    gateway.counts("http_denied", "web/all", "credentials_wrong", 3);
    let (status, head, _) = client.get("/");
    assert_eq!((status, header(&head, "www-authenticate")), (401, Some("Bearer")));
    gateway.counts("http_denied", "web/all", "credentials_missing", 1);
    assert_eq!(server.heads().len(), 1);
}

#[test]
fn no_path_leads_out_of_the_folder_of_files() {
    let server = Server::start();
    let dir = temp_dir();
    let root = dir.join("public");
    std::fs::create_dir_all(root.join("sub/deep")).unwrap();
    std::fs::write(dir.join("secret.txt"), "secret").unwrap();
    std::fs::write(root.join("a.txt"), "inside").unwrap();
    std::fs::write(root.join("sub/index.html"), "<p>sub").unwrap();
    std::fs::write(root.join("white space.txt"), "white").unwrap();
    let big: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[0] ^ n.to_le_bytes()[1]).collect();
    std::fs::write(root.join("big.bin"), &big).unwrap();
    std::os::unix::fs::symlink("../secret.txt", root.join("out.txt")).unwrap();
    std::os::unix::fs::symlink("..", root.join("up")).unwrap();
    std::os::unix::fs::symlink("a.txt", root.join("in.txt")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    let route = format!(
        "[[listener.route]]\npath = \"/f\"\nstrip_prefix = true\nservice = \"static\"\nroot = {root:?}\n\
         response_set = \"cache-control: max-age=60\"\n"
    );
    let gateway = Running::start(&(config(server.address, "", "path = \"/app\"") + &route));
    let mut client = Client::to(gateway.address("web"));
    let mut get = |path: &str| client.get(path);
    let (status, head, body) = get("/f/a.txt");
    assert_eq!((status, body.as_slice(), header(&head, "cache-control")), (200, &b"inside"[..], Some("max-age=60")));
    assert_eq!(get("/f/in.txt").2, b"inside", "a link that stays inside");
    assert_eq!(get("/f/white%20space.txt").2, b"white");
    assert_eq!(get("/f/sub/").2, b"<p>sub");
    let (status, head, _) = get("/f/sub");
    assert_eq!((status, header(&head, "location")), (301, Some("sub/")));
    assert_eq!(get("/f/big.bin").2, big);
    for missing in
        ["/f/out.txt", "/f/up/secret.txt", "/f/fifo", "/f/sub/deep/", "/f/none", "/f/a.txt/", "/f//etc/passwd"]
    {
        assert_eq!(get(missing).0, 404, "{missing}");
    }
    for refused in ["/f/../secret.txt", "/f/%2e%2e/secret.txt", "/f/..%2fsecret.txt", "/f/%00", "/f/..\\secret.txt"] {
        // Some of these end the connection, so each has its own.
        assert_eq!(Client::to(gateway.address("web")).get(refused).0, 400, "{refused}");
    }
    let mut ask = |method: &str, fields: &str| {
        client.send(format!("{method} /f/big.bin HTTP/1.1\r\nhost: a\r\n{fields}\r\n"));
        let (status, head) = client.head();
        let length = header(&head, "content-length").map_or(0, |length| length.parse().unwrap());
        let mut body = vec![0; if method == "HEAD" || status == 304 { 0 } else { length }];
        std::io::Read::read_exact(&mut client.0, &mut body).unwrap();
        (status, head, body)
    };
    let (status, head, _) = ask("HEAD", "");
    assert_eq!((status, header(&head, "content-length")), (200, Some("3000000")));
    let (tag, date) = (header(&head, "etag").unwrap().to_owned(), header(&head, "last-modified").unwrap().to_owned());
    assert_eq!(ask("GET", &format!("if-none-match: \"x\", {tag}\r\n")).0, 304);
    assert_eq!(ask("GET", &format!("if-modified-since: {date}\r\n")).0, 304);
    assert_eq!(ask("GET", "if-match: \"x\"\r\n").0, 412);
    let (status, head, body) = ask("GET", "range: bytes=-5\r\n");
    assert_eq!((status, body.as_slice()), (206, &big[big.len() - 5..]));
    assert_eq!(header(&head, "content-range"), Some("bytes 2999995-2999999/3000000"));
    assert_eq!(ask("GET", "range: bytes=2999990-\r\n").2, &big[2_999_990..]);
    assert_eq!(ask("GET", "range: bytes=3000000-\r\n").0, 416);
    assert_eq!(ask("POST", "content-length: 0\r\n").0, 405);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_reload_reads_users_anew() {
    let server = Server::start();
    let dir = temp_dir();
    let file = dir.join("users");
    let write = |password: &str| {
        std::fs::write(&file, format!("bob:{}\n", bcrypt::hash(password, 4).unwrap())).unwrap();
    };
    write("one");
    let port = crate::gateway::free();
    let text = config(server.address, "", &format!("basic_auth = {file:?}"))
        .replace("listen = \"127.0.0.1:0\"", &format!("listen = \"{port}\""));
    let gateway = Running::start(&text);
    let mut client = Client::to(port);
    // bob:one
    let mut ask = || asked(&mut client, "/", "authorization: Basic Ym9iOm9uZQ==\r\n").0;
    assert_eq!(ask(), 200);
    write("two");
    let config = portway::gateway::check::parse("test.toml", &text, &Default::default()).unwrap();
    gateway.gateway().reload(config).unwrap();
    assert_eq!(ask(), 401, "what was remembered went with its route");
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn a_hook_of_a_program_decides_about_requests() {
    let builder = http_middleware::builder();
    let text = std::fs::read_to_string("examples/configs/http_middleware.toml").unwrap();
    let text = text.replace("127.0.0.1:7110", "127.0.0.1:0");
    let gateway = Running::with(&builder, &text, &builder.known());
    let mut client = Client::to(gateway.address("kept"));
    assert_eq!(client.get("/").0, 200);
    let (status, _, body) = client.get("/private");
    assert_eq!((status, body.as_slice()), (403, &b"nobody at 127.0.0.1 knows the key\n"[..]));
    gateway.counts("http_denied", "kept/all", "hook", 1);
    let (status, _, body) = asked(&mut client, "/private", "x-key: sesame\r\n");
    assert_eq!(status, 200);
    assert!(String::from_utf8(body).unwrap().contains("x-who: a friend"), "what it said reaches what answers");
}
