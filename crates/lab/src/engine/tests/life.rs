//! Clients that leave, and servers that end.

use super::*;

#[tokio::test]
async fn a_client_that_leaves_mid_stream_aborts_its_request() {
    let server = start(slow()).await;
    let mut body = ask("hello", 1000);
    body["stream"] = true.into();
    let answer = client().post(server.url() + CHAT).json(&body).send().await.unwrap();
    until(|| server.gauges().running == 1).await;
    drop(answer);
    until(|| server.gauges().running == 0).await;
    assert_eq!(server.gauges().kv_usage, 0.0);
    assert_eq!(server.counters().aborted, 1);
    assert_eq!(server.received(), 1);
}

#[tokio::test]
async fn clients_that_leave_before_any_answer_abort_running_and_waiting_requests() {
    let mut config = slow();
    config.shape.max_num_seqs = 1;
    let server = start(config).await;
    let wait = async |body: Value| client().post(server.url() + CHAT).json(&body).send().await;
    {
        let first = wait(ask("one", 1000));
        let second = wait(ask("two", 1000));
        let leave = until(|| server.gauges().running == 1 && server.gauges().waiting == 1);
        tokio::select! {
            _ = first => panic!("answered"),
            _ = second => panic!("answered"),
            () = leave => {}
        }
    }
    until(|| server.gauges() == Default::default()).await;
    assert_eq!(server.counters().aborted, 2);
}

#[tokio::test]
async fn a_killed_server_breaks_its_streams_and_starts_again_empty_on_the_same_port() {
    let server = start(slow()).await;
    let mut body = ask("hello", 1000);
    body["stream"] = true.into();
    let answer = client().post(server.url() + CHAT).json(&body).send().await.unwrap();
    until(|| server.gauges().running == 1).await;
    let addr = server.addr;
    let server = server.restart().await.unwrap();
    assert!(answer.bytes().await.is_err(), "the stream broke off");
    assert_eq!(server.addr, addr);
    assert_eq!(server.received(), 0);
    assert_eq!(client().get(server.url() + "/health").send().await.unwrap().status(), 200);
    server.kill().await;
    assert!(client().get(format!("http://{addr}/health")).send().await.is_err());
}

#[tokio::test]
async fn a_stopped_server_finishes_its_streams_first() {
    let mut config = fast();
    config.shape.costs = Costs::simple(1e6, 20.0);
    let server = start(config).await;
    let mut body = ask("hello", 20);
    body["stream"] = true.into();
    let answer = client().post(server.url() + CHAT).json(&body).send().await.unwrap();
    let (text, ()) = tokio::join!(answer.text(), server.stop());
    assert!(text.unwrap().ends_with("data: [DONE]\n\n"));
}
