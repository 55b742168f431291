//! Which of the acknowledged events are in the restored files, and is each there once and in order?

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, ErrorKind};
use std::path::Path;
use std::time::Duration;

use serde::Deserialize;

use super::load::{Acks, Plan};
use crate::domain::Domain;
use crate::storage::FileNames;

/// Most faults that are told one by one; the rest is counted.
const EXAMPLES_MAX: usize = 10;

/// What was found.
#[derive(Debug, Default)]
pub(super) struct Survey {
    pub(super) domains: Vec<DomainSurvey>,
    /// Lines that are no event of this load, or no whole line.
    pub(super) damaged: u64,
    pub(super) doubled: u64,
    pub(super) out_of_order: u64,
    /// Missing numbers with a later one of the same client and domain behind them.
    pub(super) holes: u64,
    /// Lost although they were acknowledged before the restored snapshot began.
    pub(super) lost_before_mark: u64,
    pub(super) examples: Vec<String>,
}

#[derive(Debug, Default)]
pub(super) struct DomainSurvey {
    pub(super) domain: String,
    pub(super) acknowledged: u64,
    /// In the restored file, acknowledged or not.
    pub(super) restored: u64,
    /// Acknowledged, and not in the restored file.
    pub(super) lost: u64,
    /// When the first and the last of the lost ones were acknowledged, from the begin of the drill.
    pub(super) lost_acks: Option<(Duration, Duration)>,
}

/// One line of a data file, as the load or the smoke test wrote it.
#[derive(Deserialize)]
struct Line {
    drill: String,
    client: Option<usize>,
    n: Option<u64>,
    #[serde(default)]
    smoke: bool,
}

/// Numbers of one client in one domain.
struct Seen {
    /// `present[n - 1]`; one longer than the acks, for the event whose ack was under way at the kill.
    present: Vec<bool>,
    last: u64,
}

/// Reads the restored files. What was acknowledged before `mark` must be there.
pub(super) fn survey(dir: &Path, plan: &Plan, acks: &Acks, mark: Duration) -> io::Result<Survey> {
    let mut survey = Survey::default();
    for (number, domain) in plan.domains.iter().enumerate() {
        let acks: Vec<&[Duration]> = acks.iter().map(|client| client[number].as_slice()).collect();
        let result = survey.domain(dir, &plan.run, domain, &acks, mark)?;
        survey.domains.push(result);
    }
    Ok(survey)
}

impl Survey {
    /// Is every line that is there whole, once there and in order, without a hole?
    pub(super) fn is_in_order(&self) -> bool {
        self.damaged + self.doubled + self.out_of_order + self.holes == 0
    }

    pub(super) fn sum(&self, of: impl Fn(&DomainSurvey) -> u64) -> u64 {
        self.domains.iter().map(of).sum()
    }

    /// When the first and the last of all lost events were acknowledged.
    pub(super) fn lost_acks(&self) -> Option<(Duration, Duration)> {
        let spans = self.domains.iter().filter_map(|domain| domain.lost_acks);
        spans.reduce(|(first, last), (other_first, other_last)| (first.min(other_first), last.max(other_last)))
    }

    fn domain(
        &mut self,
        dir: &Path,
        run: &str,
        domain: &str,
        acks: &[&[Duration]],
        mark: Duration,
    ) -> io::Result<DomainSurvey> {
        let mut seen: Vec<Seen> =
            acks.iter().map(|acks| Seen { present: vec![false; acks.len() + 1], last: 0 }).collect();
        self.read(dir, run, domain, &mut seen)?;
        let mut result = DomainSurvey { domain: domain.to_owned(), ..DomainSurvey::default() };
        for (client, (acks, seen)) in acks.iter().zip(&seen).enumerate() {
            result.acknowledged += acks.len() as u64;
            result.restored += seen.present.iter().filter(|present| **present).count() as u64;
            for (n, ack) in (1..).zip(acks.iter()).filter(|(n, _)| !seen.present[*n as usize - 1]) {
                result.lost += 1;
                let (first, last) = result.lost_acks.unwrap_or((*ack, *ack));
                result.lost_acks = Some((first.min(*ack), last.max(*ack)));
                if n < seen.last {
                    self.holes += 1;
                    self.tell(format!("{domain}: client {client}: {n} is missing before {}", seen.last));
                }
                if *ack < mark {
                    self.lost_before_mark += 1;
                    self.tell(format!(
                        "{domain}: client {client}: {n} was acknowledged before the snapshot and is lost"
                    ));
                }
            }
        }
        Ok(result)
    }

    fn read(&mut self, dir: &Path, run: &str, domain: &str, seen: &mut [Seen]) -> io::Result<()> {
        let name = FileNames::of(&Domain::parse(domain).expect("the drill names domains")).data;
        let mut file = match File::open(dir.join(&name)) {
            Ok(file) => BufReader::with_capacity(1 << 20, file),
            // No event of this domain was restored.
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(()),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        for number in 1u64.. {
            bytes.clear();
            if file.read_until(b'\n', &mut bytes)? == 0 {
                break;
            }
            self.line(run, &name, number, &bytes, seen);
        }
        Ok(())
    }

    fn line(&mut self, run: &str, name: &str, number: u64, bytes: &[u8], seen: &mut [Seen]) {
        let whole = bytes.strip_suffix(b"\n").and_then(|line| serde_json::from_slice::<Line>(line).ok());
        let Some(line) = whole.filter(|line| line.drill == run) else {
            self.damaged += 1;
            self.tell(format!("{name}, line {number}: no event of this drill"));
            return;
        };
        if line.smoke {
            return;
        }
        let sent = line.client.and_then(|client| Some((client, line.n?, seen.get_mut(client)?)));
        let Some((client, n, seen)) = sent.filter(|(_, n, seen)| (1..=seen.present.len() as u64).contains(n)) else {
            self.damaged += 1;
            self.tell(format!("{name}, line {number}: an event that was never sent"));
            return;
        };
        if std::mem::replace(&mut seen.present[n as usize - 1], true) {
            self.doubled += 1;
            self.tell(format!("{name}, line {number}: {n} of client {client} is there twice"));
        } else if n < seen.last {
            self.out_of_order += 1;
            let last = seen.last;
            self.tell(format!("{name}, line {number}: {n} of client {client} comes after {last}"));
        }
        seen.last = seen.last.max(n);
    }

    fn tell(&mut self, example: String) {
        if self.examples.len() < EXAMPLES_MAX {
            self.examples.push(example);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MARK: Duration = Duration::from_millis(35);

    /// Two clients with five acks each, after 10, 20, … 50 ms; the file holds `lines`.
    fn look(lines: &str) -> Survey {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("d.jsonl"), lines).unwrap();
        let plan = Plan { run: "r".to_owned(), clients: 2, domains: vec!["d".to_owned()], event_bytes: 0 };
        let acks: Vec<Duration> = (1..=5).map(|n| Duration::from_millis(n * 10)).collect();
        survey(dir.path(), &plan, &vec![vec![acks.clone()], vec![acks]], MARK).unwrap()
    }

    fn lines(numbers: &[(usize, u64)]) -> String {
        let line = |(client, n): &(usize, u64)| {
            format!("{{\"drill\":\"r\",\"client\":{client},\"n\":{n},\"domain\":\"d\"}}\n")
        };
        numbers.iter().map(line).collect()
    }

    /// Broken, a drill would call a sound restore a loss, or count the lost ones wrongly.
    #[test]
    fn a_prefix_of_each_client_is_in_order() {
        let got = look(&lines(&[(0, 1), (1, 1), (0, 2), (0, 3), (1, 2), (1, 3), (1, 4)]));
        assert!(got.is_in_order(), "{got:?}");
        assert_eq!(got.lost_before_mark, 0);
        assert_eq!((got.sum(|d| d.acknowledged), got.sum(|d| d.restored), got.sum(|d| d.lost)), (10, 7, 3));
        assert_eq!(got.lost_acks(), Some((Duration::from_millis(40), Duration::from_millis(50))));
        // One more than acknowledged: its answer was under way at the kill. And the smoke test's own event.
        let all: Vec<(usize, u64)> = (1..=6).map(|n| (0, n)).chain((1..=5).map(|n| (1, n))).collect();
        let got = look(&format!("{}{{\"drill\":\"r\",\"smoke\":true}}\n", lines(&all)));
        assert!(got.is_in_order() && got.lost_acks().is_none(), "{got:?}");
        assert_eq!((got.sum(|d| d.restored), got.sum(|d| d.lost)), (11, 0));
    }

    /// Broken, a drill would end well although events are gone, doubled, torn or mixed up.
    #[test]
    fn each_fault_is_counted_by_its_name() {
        let whole = [(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)];
        let counts = |s: &Survey| [s.damaged, s.doubled, s.out_of_order, s.holes, s.lost_before_mark];
        assert_eq!(counts(&look(&lines(&whole))), [0; 5]);
        for (numbers, want) in [
            (&[(0, 1), (0, 2), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3)][..], [0, 1, 0, 0, 0]),
            (&[(0, 2), (0, 1), (0, 3), (1, 1), (1, 2), (1, 3)], [0, 0, 1, 0, 0]),
            (&[(0, 1), (0, 3), (1, 1), (1, 2), (1, 3)], [0, 0, 0, 1, 1]),
            (&[(0, 1), (0, 2), (1, 1), (1, 2), (1, 3)], [0, 0, 0, 0, 1]),
            (&[(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 5)], [0, 0, 0, 1, 0]),
            (&[(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (1, 7)], [1, 0, 0, 0, 0]),
            (&[(0, 1), (0, 2), (0, 3), (1, 1), (1, 2), (1, 3), (2, 1)], [1, 0, 0, 0, 0]),
            (&[], [0, 0, 0, 0, 6]),
        ] {
            let got = look(&lines(numbers));
            assert_eq!(counts(&got), want, "{numbers:?}: {got:?}");
            assert!(!got.examples.is_empty(), "{numbers:?}");
        }
        for (tail, damaged) in [
            ("{\"drill\":\"r\",\"client\":0,\"n\":4}", 1),
            ("{\"drill\":\"other\",\"client\":0,\"n\":4}\n", 1),
            ("\0\0\0\n\n", 2),
        ] {
            let got = look(&format!("{}{tail}", lines(&whole)));
            assert_eq!(counts(&got), [damaged, 0, 0, 0, 0], "{tail:?}: {got:?}");
        }
    }
}
