//! Two domains whose events go to one file, because the name of one is what the other's is shortened to.

use leitstand::domain::Domain;
use leitstand::event::{Batch, Format};
use leitstand::storage::{FileNames, Fsync, StoreError};

use crate::faulty::Fault;
use crate::storage::{faulty_with, options, runtime};
use crate::support::in_time;

const EIO: i32 = 5;

/// A domain of 253 characters, and the domain of 249 that is spelled as its file is.
fn pair() -> (Domain, Domain) {
    let long = Domain::parse(&format!("{0}.{0}.{0}.{1}", "a".repeat(63), "a".repeat(61))).unwrap();
    let file = FileNames::of(&long).data;
    let twin = Domain::parse(file.strip_suffix(".jsonl").unwrap()).unwrap();
    assert_eq!(FileNames::of(&twin), FileNames::of(&long));
    assert!(twin != long && twin.as_str().len() == 249);
    (long, twin)
}

/// Broken, each of the two would have a writer of its own, and one would go on to write to a file that is in
/// doubt for the other.
#[test]
fn two_domains_of_one_file_have_one_writer() {
    runtime().block_on(async {
        let (long, twin) = pair();
        let dir = tempfile::tempdir().unwrap();
        let (store, plan) = faulty_with(dir.path(), options(Fsync::Always));
        let append = async |domain: &Domain| {
            let batch = Batch::parse("{}", Format::Document, Some(domain.clone())).unwrap().unwrap();
            in_time(store.append(batch, store.reserve(1).unwrap())).await
        };
        append(&long).await.unwrap();
        append(&twin).await.unwrap();
        append(&long).await.unwrap();
        assert_eq!(store.health().known_domains, 1);
        let text = std::fs::read_to_string(dir.path().join(FileNames::of(&long).data)).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let domains: Vec<&str> = lines.iter().map(|line| line["domain"].as_str().unwrap()).collect();
        assert_eq!(domains, [long.as_str(), twin.as_str(), long.as_str()], "each line says whose it is");

        plan.fail_next("sync_data", Fault::Errno(EIO));
        assert!(matches!(append(&long).await, Err(StoreError::Sync { .. })));
        assert!(matches!(append(&twin).await, Err(StoreError::Poisoned { .. })));
        assert_eq!(store.health().poisoned_domains, 1);
    });
}
