use super::*;
use tokio::sync::broadcast;

async fn text(decisions: &mut Receiver<Arc<str>>) -> Option<String> {
    let event = next(decisions).await?;
    Some(String::from_utf8(event.to_vec()).unwrap())
}

#[tokio::test]
async fn a_slow_reader_is_told_what_it_missed() {
    let (sender, mut receiver) = broadcast::channel::<Arc<str>>(2);
    for number in 0..5 {
        sender.send(number.to_string().into()).unwrap();
    }
    assert_eq!(text(&mut receiver).await.unwrap(), ": too slow, 3 events lost\n\n");
    assert_eq!(text(&mut receiver).await.unwrap(), "data: 3\n\n");
    assert_eq!(text(&mut receiver).await.unwrap(), "data: 4\n\n");
    drop(sender);
    assert_eq!(text(&mut receiver).await, None);
}

#[tokio::test(start_paused = true)]
async fn a_quiet_stream_is_kept_alive() {
    let (_sender, mut receiver) = broadcast::channel::<Arc<str>>(2);
    assert_eq!(text(&mut receiver).await.unwrap(), ": keep-alive\n\n");
}
