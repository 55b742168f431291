//! What a store does in the background, by itself.

use super::*;

fn store(dir: &std::path::Path) -> Store {
    let options = StoreOptions { fsync: Fsync::EverySecond, reserve_bytes: Some(0), ..StoreOptions::default() };
    Store::open(dir, options, StoreMetrics::new()).unwrap()
}

async fn append(store: &Store, domain: &Domain) {
    let batch = Batch::parse("{}", crate::event::Format::Document, Some(domain.clone())).unwrap().unwrap();
    store.append(batch, store.reserve(1).unwrap()).await.unwrap();
}

/// Broken, files would stay open for ever, or be closed although lines in them are not synced.
#[test]
fn a_writer_that_rests_is_closed_unless_something_would_be_lost() {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let (store, domain) = (store(dir.path()), Domain::parse("a").unwrap());
        append(&store, &domain).await;
        let writer = store.writer(&domain);
        assert!(writer.is_dirty() && !writer.rest(Duration::ZERO), "not synced");
        store.flush().await;
        // The turn that synced may still be at the desk.
        let at_rest = Instant::now() + Duration::from_secs(10);
        while !writer.rest(Duration::ZERO) {
            assert!(Instant::now() < at_rest);
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(store.health().open_domains, 0);
        append(&store, &domain).await;
        store.flush().await;
        for _ in 0..20 {
            assert!(!writer.rest(IDLE_AFTER), "it was used just now");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        drop(writer);
        store.sweep();
        assert_eq!((store.health().open_domains, store.health().known_domains), (1, 1));
    });
}
