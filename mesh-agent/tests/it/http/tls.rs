//! TLS that the client's agent begins towards servers that are not in the mesh, as a DestinationRule asks, and what comes of it where it cannot.

use std::path::{Path, PathBuf};
use std::time::Duration;

use mesh_lab::process::Process;
use mesh_lab::{Capture, Pod};
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use super::*;

/// What requests carry and nobody may read on the way.
const SECRET: &str = "the-word-that-nobody-may-read";
const HOST: &str = "secure.outside.svc.cluster.local";
const CLUSTER: &str = "http://10.97.2.3";

fn authority() -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
    params.distinguished_name.push(DnType::CommonName, "an authority");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

fn sign(issuer: &Issuer<'static, KeyPair>, name: &str, usage: ExtendedKeyUsagePurpose) -> (String, String) {
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    // One that had its issuer's name would be taken for self-signed.
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![usage];
    let key = KeyPair::generate().unwrap();
    (params.signed_by(&key, issuer).unwrap().pem(), key.serialize_pem())
}

/// A directory of the world, with files.
fn put(directory: &str, files: &[(&str, &str)]) -> PathBuf {
    let directory = HTTP.world.directory().join(directory);
    std::fs::create_dir_all(&directory).unwrap();
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
    directory
}

/// nginx with TLS on 8443 and 8445, and on 8444 for clients with a certificate. It says which version of HTTP it was asked in, and by whom.
fn nginx(pod: &Pod, files: &Path) -> Process {
    let place = files.display();
    let config = format!(
        "daemon off; master_process off; pid {place}/pid; error_log stderr;\nevents {{}}\nhttp {{\n\
         access_log off; client_body_temp_path {place}/b; proxy_temp_path {place}/p; fastcgi_temp_path {place}/f;\n\
         uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
         ssl_certificate {place}/tls.crt; ssl_certificate_key {place}/tls.key;\n\
         server {{ listen 8443 ssl http2; location / {{ return 200 \"$server_protocol $scheme $http_x_secret\\n\"; }} }}\n\
         server {{ listen 8445 ssl; }}\n\
         server {{ listen 8444 ssl; ssl_client_certificate {place}/clients.crt; ssl_verify_client on;\n\
         location / {{ return 200 \"client $ssl_client_verify\\n\"; }} }}\n}}\n"
    );
    std::fs::write(files.join("nginx.conf"), config).unwrap();
    let conf = files.join("nginx.conf");
    let process = pod.spawn(&["nginx", "-e", "stderr", "-c", conf.to_str().unwrap()]).expect("nginx");
    let listens = || pod.exec(&["curl", "-sk", "https://127.0.0.1:8443/"], LIMIT).is_ok_and(|done| done.code() == Some(0));
    wait_until("nginx listens", LIMIT, listens).unwrap();
    process
}

fn rule(host: &str, tls: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule", "metadata": { "name": "tls", "namespace": "shop" },
        "spec": { "host": host, "trafficPolicy": { "tls": tls } },
    })
}

/// Connections to a port of a pod that neither side has ended.
fn established(pod: &Pod, port: u16) -> usize {
    let finished = pod.exec(&["cat", "/proc/net/tcp"], LIMIT).unwrap();
    let local = format!(":{port:04X}");
    let is_one = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next().is_some_and(|address| address.ends_with(&local)) && fields.nth(1) == Some("01")
    };
    finished.stdout.lines().filter(is_one).count()
}

fn capture(name: &str) -> Capture {
    HTTP.world.capture_fabric(name).expect("a capture")
}

#[test]
fn tls_towards_a_server_outside_the_mesh_is_verified_or_nothing_is_sent() {
    let (issuer, roots) = authority();
    let (certificate, key) = sign(&issuer, "db.example", ExtendedKeyUsagePurpose::ServerAuth);
    let (clients, client_roots) = authority();
    let files = put("tls-server", &[("tls.crt", &certificate), ("tls.key", &key), ("clients.crt", &client_roots), ("ca.crt", &roots)]);
    let other = put("tls-other", &[("ca.crt", &authority().1)]);
    let _server = nginx(&HTTP.pod("stranger"), &files);
    let (client, ca) = (HTTP.pod("client"), files.join("ca.crt").display().to_string());
    let secret = format!("X-Secret: {SECRET}");
    let ask = |words: &[&str]| client.curl(&[&["-H", &secret][..], words].concat()).unwrap();
    let with = |tls: Value| HTTP.apply("rule-tls", &[rule(HOST, &tls)]);

    let link = capture("tls-good");
    with(json!({ "mode": "SIMPLE", "sni": "db.example", "caCertificates": ca }));
    for (words, wanted) in [
        (&[CLUSTER][..], format!("HTTP/1.1 https {SECRET}\n")),
        (&["--http2-prior-knowledge", CLUSTER][..], format!("HTTP/2.0 https {SECRET}\n")),
        (&["-H", "Host: db.example", "http://10.97.2.3/again"][..], format!("HTTP/1.1 https {SECRET}\n")),
    ] {
        let answer = ask(words);
        assert_eq!((answer.status, &answer.body), (200, &wanted), "{words:?} {answer:?}");
    }
    let line = HTTP.access("n1", &[("path", "/again"), ("direction", "outbound")]);
    assert_eq!((text(&line, "upstream_tls"), text(&line, "security")), ("db.example", "none"), "{line}");
    // What is no HTTP has TLS too. (A client that ends its half at once is no test: servers of TLS take that for its end.)
    let answer = ask(&["http://10.97.2.3:90/whole"]);
    assert_eq!((answer.status, &answer.body), (200, &format!("HTTP/1.1 https {SECRET}\n")), "{answer:?}");
    let line = HTTP.access("n1", &[("dialled", "10.97.2.3:90"), ("outcome", "completed")]);
    assert_eq!(text(&line, "upstream_tls"), "db.example", "{line}");
    let trace = link.finish(Duration::from_millis(300)).unwrap();
    assert!(trace.packets() > 0 && !trace.contains(SECRET.as_bytes()), "it was read on the way");
    assert!(HTTP.sum("n1", "nodemesh_origination_handshakes_total", &[("result", "full")]) >= 1.0);

    let link = capture("tls-bad");
    let missing = files.join("none.crt").display().to_string();
    for (tls, wanted, name) in [
        (
            json!({ "mode": "SIMPLE", "sni": "db.example", "caCertificates": other.join("ca.crt") }),
            "certificate is not accepted",
            "upstream_tls_certificate",
        ),
        (json!({ "mode": "SIMPLE", "sni": "other.example", "caCertificates": ca }), "other.example", "upstream_tls_certificate"),
        (
            json!({ "mode": "SIMPLE", "sni": "db.example", "subjectAltNames": ["x.example"], "caCertificates": ca }),
            "x.example",
            "upstream_tls_certificate",
        ),
        (json!({ "mode": "SIMPLE", "sni": "db.example", "caCertificates": missing }), "none.crt", "upstream_tls_files"),
        (json!({ "mode": "MUTUAL", "sni": "db.example", "credentialName": "nobody" }), "shop/nobody/ca.crt", "upstream_tls_files"),
        (
            json!({ "mode": "MUTUAL", "caCertificates": ca, "clientCertificate": files.join("tls.crt"), "privateKey": files.join("tls.key") }),
            "is not below",
            "upstream_tls_files",
        ),
    ] {
        with(tls.clone());
        let path = format!("http://10.97.2.3/{name}-{}", wanted.len());
        let answer = ask(&[&path]);
        assert_eq!(answer.status, 503, "{tls} {answer:?}");
        assert!(answer.body.contains(wanted), "{tls}: {}", answer.body);
        let line = HTTP.access("n1", &[("path", path.trim_start_matches("http://10.97.2.3")), ("outcome", name)]);
        assert_eq!(text(&line, "flags"), "UF", "{line}");
        let request = format!("GET /whole HTTP/1.1\r\nHost: a\r\nX-Secret: {SECRET}\r\nConnection: close\r\n\r\n");
        let report = client.connect("10.97.2.3:90".parse().unwrap(), &request).unwrap();
        assert_eq!(report.received, "", "{tls} {report:?}");
    }
    let problems = HTTP.admin("n1", "/problems").to_string();
    assert!(problems.contains("is not below"), "{problems}");
    let trace = link.finish(Duration::from_millis(300)).unwrap();
    assert!(trace.packets() > 0 && !trace.contains(SECRET.as_bytes()), "it was sent in the clear");

    // What is given up because nobody says a word is given up towards the server too, which would wait much longer.
    let mut idle = rule(HOST, &json!({ "mode": "SIMPLE", "sni": "db.example", "caCertificates": ca }));
    idle["spec"]["trafficPolicy"]["connectionPool"] = json!({ "tcp": { "idleTimeout": "2s" } });
    HTTP.apply("rule-tls", &[idle]);
    std::thread::scope(|scope| {
        let connected = scope.spawn(|| client.peer(&["connect", "10.97.2.3:91", "--timeout", "15"], LIMIT).unwrap());
        let stranger = HTTP.pod("stranger");
        wait_until("there is TLS with the server", LIMIT, || established(&stranger, 8445) == 1).unwrap();
        let report = connected.join().unwrap();
        assert!(report.connected, "{report:?}");
        let line = HTTP.access("n1", &[("dialled", "10.97.2.3:91"), ("outcome", "idle_timeout")]);
        assert_eq!(text(&line, "upstream_tls"), "db.example", "{line}");
        wait_until("the server sees the end", SOON, || established(&stranger, 8445) == 0).unwrap();
    });

    // The names that a ServiceEntry says of its servers count where the rule says none.
    let named = |names: Value, of_rule: Value| {
        let spec = json!({
            "hosts": ["named.example"], "addresses": ["10.97.2.99"], "resolution": "STATIC", "exportTo": ["."], "subjectAltNames": names,
            "ports": [{ "number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8443 }],
            "endpoints": [{ "address": HTTP.pod("stranger").ipv4().to_string() }],
        });
        let metadata = json!({ "name": "named", "namespace": "shop" });
        let entry = json!({ "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": metadata, "spec": spec });
        let mut rule = rule("named.example", &json!({ "mode": "SIMPLE", "caCertificates": ca, "subjectAltNames": of_rule }));
        rule["metadata"]["name"] = json!("named");
        HTTP.apply("named", &[entry, rule]);
        ask(&["-H", "Host: named.example", "http://10.97.2.99/"])
    };
    for (names, of_rule, wanted) in [
        (json!([]), json!([]), Err("named.example")),
        (json!(["db.example"]), json!([]), Ok(())),
        (json!(["x.example"]), json!([]), Err("x.example")),
        (json!(["x.example"]), json!(["db.example"]), Ok(())),
        (json!(["db.example"]), json!(["y.example"]), Err("y.example")),
    ] {
        let answer = named(names.clone(), of_rule.clone());
        match wanted {
            Ok(()) => assert_eq!(answer.status, 200, "{names} {of_rule} {answer:?}"),
            Err(name) => assert!(answer.status == 503 && answer.body.contains(name), "{names} {of_rule} {answer:?}"),
        }
    }
    HTTP.withdraw("named");

    // A certificate of the client's namespace, which is renewed.
    let mutual = json!({ "mode": "MUTUAL", "sni": "db.example", "credentialName": "db" });
    put("credentials/shop/db", &[("ca.crt", &roots)]);
    with(json!({ "mode": "SIMPLE", "sni": "db.example", "credentialName": "db" }));
    assert_eq!(ask(&["http://10.97.2.3:81"]).status, 400, "nginx says so to who shows none");
    with(mutual);
    assert_eq!(ask(&["http://10.97.2.3:81"]).status, 503, "there is none yet");
    let (certificate, key) = sign(&clients, "client", ExtendedKeyUsagePurpose::ClientAuth);
    put("credentials/shop/db", &[("tls.crt", &certificate), ("tls.key", &key)]);
    let seen = wait_until("the agent sees the files", LIMIT, || ask(&["http://10.97.2.3:81"]).status == 200);
    assert!(seen.is_ok(), "{:?}", ask(&["http://10.97.2.3:81"]));
    assert_eq!(ask(&["http://10.97.2.3:81"]).body, "client SUCCESS\n");
    HTTP.withdraw("rule-tls");
}

#[test]
fn tls_towards_a_pod_of_the_mesh_goes_inside_its_tunnel() {
    let (issuer, roots) = authority();
    let (certificate, key) = sign(&issuer, "inside.shop.svc.cluster.local", ExtendedKeyUsagePurpose::ServerAuth);
    let files = put("tls-inside", &[("tls.crt", &certificate), ("tls.key", &key), ("clients.crt", &roots), ("ca.crt", &roots)]);
    let _server = nginx(&HTTP.pod("v3"), &files);
    HTTP.apply("rule-tls-inside", &[rule("inside", &json!({ "mode": "SIMPLE", "caCertificates": files.join("ca.crt") }))]);
    let client = HTTP.pod("client");
    // The server is named by the request's host, as in Istio.
    let answer = client.curl(&["-H", "Host: inside.shop.svc.cluster.local", "http://10.97.2.4/tunnelled"]).unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "HTTP/1.1 https \n"), "{answer:?}");
    let line = HTTP.access("n1", &[("path", "/tunnelled"), ("direction", "outbound")]);
    assert_eq!((text(&line, "upstream_tls"), text(&line, "security")), ("inside.shop.svc.cluster.local", "mutual_tls"), "{line}");
    let answer = client.curl(&["-H", "Host: somebody.example", "http://10.97.2.4/"]).unwrap();
    assert!(answer.status == 503 && answer.body.contains("somebody.example"), "{answer:?}");
    let answer = client.curl(&["http://10.97.2.4:90/"]).unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "HTTP/1.1 https \n"), "by the Service's own name: {answer:?}");
    HTTP.withdraw("rule-tls-inside");
}

#[test]
fn a_connection_that_is_not_parsed_lasts_as_long_as_its_rule_lets_it() {
    let _quiet = HTTP.pod("v3").serve("stall", 7075).unwrap();
    let ports = json!([{ "port": { "number": 91 }, "connectionPool": { "tcp": { "idleTimeout": "1s" } } },
        { "port": { "number": 92 }, "connectionPool": { "tcp": { "maxConnectionDuration": "1s" } } }]);
    let mut bounded = rule("bounded", &json!({ "mode": "ISTIO_MUTUAL" }));
    bounded["spec"]["trafficPolicy"]["portLevelSettings"] = ports;
    bounded["metadata"]["name"] = json!("bounded");
    HTTP.apply("rule-bounded", &[bounded]);
    let client = HTTP.pod("client");
    for (port, outcome) in [(91, "idle_timeout"), (92, "max_connection_duration")] {
        let dialled = format!("10.97.2.5:{port}");
        let report = client.connect(dialled.parse().unwrap(), "").unwrap();
        assert!(report.connected, "{report:?}");
        let line = HTTP.access("n1", &[("dialled", &dialled), ("outcome", outcome)]);
        assert_eq!(text(&line, "security"), "mutual_tls", "{line}");
    }
    HTTP.withdraw("rule-bounded");
}
