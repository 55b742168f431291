//! Exactly the signatures of the first version, as its callers used them. It need not run to prove something:
//! it must compile.

use futures_util::stream::{self, Stream};
use leitstand_producer::{ProducerClient, ProducerError};
use serde::Serialize;

#[derive(Serialize)]
struct Event {
    event: String,
    status: String,
}

fn event() -> Event {
    Event { event: "demo".to_owned(), status: "ok".to_owned() }
}

fn one<T: Serialize>(client: &ProducerClient, event: &T) -> Result<(), ProducerError> {
    client.send_one(event)
}

fn many<T, I>(client: &ProducerClient, events: I) -> Result<(), ProducerError>
where
    T: Serialize,
    I: IntoIterator<Item = T>,
{
    client.send_iter(events)
}

async fn one_async<T: Serialize>(client: &ProducerClient, event: &T) -> Result<(), ProducerError> {
    client.send_one_async(event).await
}

async fn many_async<T, S>(client: &ProducerClient, events: S) -> Result<(), ProducerError>
where
    T: Serialize,
    S: Stream<Item = T> + Send + Sync + 'static,
{
    client.send_iter_async(events).await
}

/// The question mark on an error of serde_json gave this error.
fn parsed(text: &str) -> Result<serde_json::Value, ProducerError> {
    Ok(serde_json::from_str(text)?)
}

/// Without a wildcard: there were two kinds of errors.
fn kind(error: &ProducerError) -> &'static str {
    match error {
        ProducerError::Http(e) => {
            let _: &dyn std::error::Error = e;
            "http"
        }
        ProducerError::Json(e) => {
            let _: &dyn std::error::Error = e;
            "json"
        }
    }
}

fn is_as_a_client_was<T: Clone + std::fmt::Debug + Send + Sync + 'static>(_: &T) {}
fn is_as_an_error_was<T: std::error::Error + Send + Sync + 'static>(_: &T) {}
fn is_send<T: Send>(future: T) -> T {
    future
}

/// Broken, programs written for the first version would not compile, or would take errors for another kind.
#[tokio::test]
async fn callers_of_the_first_version_go_on() {
    // Nobody listens on port 1. Both kinds of text were taken.
    let client = ProducerClient::new("http://127.0.0.1:1/");
    let _ = ProducerClient::new(String::from("http://127.0.0.1:1"));
    is_as_a_client_was(&client);
    // Each call has given up after one pause at most: the environment may ask for many.
    let client = ProducerClient::builder("http://127.0.0.1:1").retries(0).build().unwrap();
    let error = one(&client.clone(), &event()).unwrap_err();
    is_as_an_error_was(&error);
    assert_eq!(kind(&error), "http");
    assert!(error.to_string().starts_with("http error: "), "{error}");
    assert_eq!(kind(&many(&client, vec![event(), event()]).unwrap_err()), "http");
    assert_eq!(kind(&many(&client, (0..3).map(|_| event())).unwrap_err()), "http");
    assert_eq!(kind(&is_send(one_async(&client, &event())).await.unwrap_err()), "http");
    let events = stream::iter(vec![event(), event()]);
    let task = tokio::spawn(async move { many_async(&client, events).await });
    assert_eq!(kind(&task.await.unwrap().unwrap_err()), "http");
    let error = parsed("{").unwrap_err();
    assert_eq!(kind(&error), "json");
    assert!(error.to_string().starts_with("json error: "), "{error}");
}
