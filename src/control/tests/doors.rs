//! Which paths are ours, on which listener, for whom.

use super::*;

fn with_keys(admin: bool) -> Config {
    let key = |name: &str, tenant: &str| ApiKey {
        name: name.into(),
        key: Secret(format!("sk-{name}")),
        tenant: tenant.into(),
    };
    let mut config = config();
    config.auth.keys = vec![key("one", "a"), key("two", "b")];
    config.admin = admin.then(|| Admin { token: Some(Secret("open sesame".into())), ..Admin::default() });
    config
}

#[test]
fn paths_of_backends_are_not_ours() {
    for path in ["/", "/v1/chat/completions", "/v1/models/x", "/programs/", "/healthz", "/programs/%ff", "/version"] {
        assert_eq!(route(&Method::GET, path), None, "{path}");
    }
}

#[test]
fn ids_in_paths_are_decoded_once() {
    for (path, id) in [
        ("/programs/a%20b", "a b"),
        ("/programs/org/repo", "org/repo"),
        ("/programs/org%2Frepo", "org/repo"),
        ("/programs/a%2520", "a%20"),
        ("/programs/%72elease", "release"),
        ("/profiles/%0d%0aX:%201", "\r\nX: 1"),
        ("/backends/http%3A%2F%2Fgpu1%3A8000", GPU1),
    ] {
        assert_eq!(route(&Method::GET, path).unwrap().id.as_deref(), Some(id), "{path}");
    }
}

#[test]
fn with_an_admin_listener_little_is_left_on_the_main_one() {
    let config = with_keys(true);
    let public = [
        ("POST", "/programs/release"),
        ("POST", "/v1/programs/release"),
        ("GET", "/health"),
        ("GET", "/livez"),
        ("GET", "/readyz"),
        ("GET", "/v1/models"),
    ];
    let private = [
        "/programs",
        "/programs/a",
        "/profiles",
        "/profiles/a",
        "/metrics",
        "/backends",
        "/backends/1",
        "/add_worker",
        "/remove_worker",
        "/list_workers",
        "/workers",
        "/weight_sync/begin",
        "/weight_sync/end",
        "/events",
        "/console",
    ];
    let answers =
        |method: &str, path, listener| route(&method.parse().unwrap(), path).unwrap().answers_on(listener, &config);
    for (method, path) in public {
        assert!(answers(method, path, Side::Main), "{path}");
        assert!(answers(method, path, Side::Admin), "{path}");
    }
    for path in private {
        assert!(!answers("GET", path, Side::Main), "{path}");
        assert!(answers("GET", path, Side::Admin), "{path}");
    }
}

#[tokio::test]
async fn a_tenants_key_is_no_operators_key() {
    let app = app_of(with_keys(false));
    let (status, answer) = ask(&app, as_tenant(with_body("POST", "/backends", r#"{"url": "http://evil"}"#), "a")).await;
    assert_eq!(status, 404);
    assert_eq!(answer["error"]["code"], "not_found");
    for path in ["/events", "/console", "/backends", "/list_workers"] {
        assert_eq!(ask(&app, as_tenant(request("GET", path), "a")).await.0, 404, "{path}");
    }
    assert_eq!(ask(&app, as_tenant(request("GET", "/programs"), "a")).await.0, 200);
    assert_eq!(app.fleet.statuses().len(), 2);
}

#[test]
fn probes_need_no_key() {
    for (path, needs) in [("/livez", false), ("/readyz", false), ("/health", false), ("/programs", true)] {
        assert_eq!(route(&Method::GET, path).unwrap().needs_key(), needs, "{path}");
    }
}

#[tokio::test]
async fn a_tenant_sees_and_ends_its_own_programs_only() {
    let app = app_of(with_keys(false));
    for (tenant, id) in [("a", "same"), ("b", "same"), ("b", "other")] {
        idle(&app, key(tenant, id)).await;
    }
    let mine = |request| as_tenant(request, "a");
    assert_eq!(keys(&ask(&app, mine(request("GET", "/programs"))).await.1), ["same"]);
    assert_eq!(ask(&app, mine(request("GET", "/programs/other"))).await.0, 404);
    assert_eq!(ask(&app, mine(request("DELETE", "/programs/other"))).await.0, 404);
    let release = |id: &str| with_body("POST", "/programs/release", &json!({"program_id": id}).to_string());
    assert_eq!(ask(&app, mine(release("other"))).await.1["released"], false);
    assert_eq!(ask(&app, mine(release("same"))).await.1["released"], true);
    assert_eq!(ask(&app, mine(request("GET", "/programs"))).await.1, json!({}));

    let all = ask(&app, on_admin(request("GET", "/programs"))).await.1;
    assert_eq!(keys(&all), ["b/other", "b/same"]);
    let shown = ask(&app, on_admin(request("GET", "/programs/b%2Fsame"))).await.1;
    assert_eq!((&shown["program_id"], &shown["tenant"]), (&json!("same"), &json!("b")));
    assert_eq!(ask(&app, on_admin(release("other"))).await.1["released"], true);
    assert_eq!(ask(&app, on_admin(release("b/same"))).await.1["released"], true);
    assert!(app.gate.programs().is_empty());
}

#[tokio::test]
async fn operators_reach_programs_of_a_tenant_that_is_named_by_its_key() {
    let mut config = with_keys(false);
    config.auth.keys[0].tenant = String::new();
    let app = app_of(config);
    idle(&app, key("one", "p")).await;
    assert_eq!(ask(&app, on_admin(request("GET", "/programs/p"))).await.0, 200);
    assert_eq!(ask(&app, on_admin(request("DELETE", "/programs/one%2Fp"))).await.0, 200);
}

#[tokio::test]
async fn the_admin_listener_asks_for_its_token() {
    let app = app_of(with_keys(true));
    // Basic authentication: `x:open sesame`.
    let basic = "Basic eDpvcGVuIHNlc2FtZQ==";
    for (method, authorization, status) in [
        ("GET", None, 401),
        ("GET", Some("Bearer open sesame"), 200),
        ("GET", Some("bearer open sesame"), 200),
        ("GET", Some("Bearer open sesam"), 401),
        ("GET", Some("Bearer "), 401),
        ("GET", Some("Bearer sk-one"), 401),
        ("GET", Some("open sesame"), 401),
        ("GET", Some(basic), 200),
        ("GET", Some("Basic eDp3cm9uZw=="), 401),
        ("GET", Some("Basic !"), 401),
        ("POST", Some("Bearer open sesame"), 400),
        // A browser sends this password by itself, also for a form of another site.
        ("POST", Some(basic), 401),
    ] {
        let request = on_admin(request(method, "/backends"));
        let request = match authorization {
            Some(value) => with_header(request, "authorization", value),
            None => request,
        };
        let response = handle(&app, request).await;
        assert_eq!(response.status, status, "{method} {authorization:?}");
        if status == 401 {
            assert_eq!(header(&response, "x-thundergate-error"), Some("invalid_admin_token"));
            assert!(header(&response, "www-authenticate").unwrap().starts_with("Bearer"));
        }
    }
}

#[tokio::test]
async fn hostile_ids_stay_inside_their_json_string() {
    let app = app();
    let hostile = "\"}\r\n<script>\u{1b}[2J\u{0}";
    idle(&app, key("", hostile)).await;
    let encoded = percent_encoding::utf8_percent_encode(hostile, percent_encoding::NON_ALPHANUMERIC).to_string();
    for path in [format!("/programs/{encoded}"), format!("/programs/x{encoded}"), "/programs".to_owned()] {
        let response = handle(&app, request("GET", &path)).await;
        let body = full(&response);
        assert!(body.iter().all(|byte| !byte.is_ascii_control()), "{path}");
        serde_json::from_slice::<Value>(body).unwrap();
        assert_eq!(header(&response, "content-type"), Some("application/json"));
    }
    assert_eq!(get(&app, &format!("/programs/{encoded}")).await.1["program_id"], hostile);
}

#[tokio::test]
async fn head_answers_without_a_body() {
    let app = app();
    let response = handle(&app, request("HEAD", "/health")).await;
    assert_eq!(response.status, 200);
    assert!(full(&response).is_empty());
    assert!(full(&handle(&app, request("HEAD", "/events")).await).is_empty());
}
