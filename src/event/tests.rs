use proptest::prelude::*;

use super::*;
use crate::json;

fn example() -> Option<Domain> {
    Some(Domain::parse("example.com").unwrap())
}

fn doc(text: &str, domain: Option<Domain>) -> Result<String, Reason> {
    parse(text, Format::Document, domain).map_err(|e| e.reason)
}

fn parse(text: &str, format: Format, domain: Option<Domain>) -> Result<String, EventError> {
    Ok(Batch::parse(text, format, domain)?.map_or(String::new(), |b| String::from_utf8(b.lines).unwrap()))
}

#[test]
fn a_stored_line_is_read_whoever_wrote_it() {
    for (line, form) in [
        ("{\"a\":1,\"domain\":\"example.com\"}", LineForm::Own),
        ("{\"a\": 1, \"domain\": \"example.com\"}\r", LineForm::Foreign),
        ("{\"\\u0064omain\":\"example.com\"}", LineForm::Foreign),
        ("{\"a\":1,\"a\":2,\"domain\":\"example.com\"}", LineForm::Foreign),
        ("{\"a\":NaN,\"domain\":\"example.com\"}", LineForm::Lenient),
        ("{\"a\":\"\\ud800\",\"domain\":\"example.com\"}", LineForm::Lenient),
    ] {
        let want = StoredLine { domain: "example.com".into(), form };
        assert_eq!(read_line(line), Ok(want), "{line}");
    }
    for (line, fault) in [
        ("", LineFault::Blank),
        (" \r", LineFault::Blank),
        ("{\"a\":1", LineFault::NotJson),
        ("{\"domain\":\"a\"}{\"domain\":\"a\"}", LineFault::NotJson),
        ("\u{feff}{\"domain\":\"a\"}", LineFault::NotJson),
        ("[{\"domain\":\"a\"}]", LineFault::NotAnObject),
        ("1", LineFault::NotAnObject),
        ("{}", LineFault::DomainMissing),
        ("{\"domain\":1}", LineFault::DomainMissing),
    ] {
        assert_eq!(read_line(line), Err(fault), "{line}");
    }
}

/// Broken, how deep an event may be would depend on how its names are written.
#[test]
fn nesting_ends_at_the_limit_whatever_the_names() {
    for name in ["a", "\\u0061"] {
        let nested = |n: usize| format!("{{\"{name}\":{}{}}}", "[".repeat(n), "]".repeat(n));
        assert!(doc(&nested(json::NESTING_MAX), example()).is_ok(), "{name}");
        assert_eq!(doc(&nested(json::NESTING_MAX + 1), example()), Err(Reason::InvalidJson), "{name}");
    }
}

#[test]
fn events_keep_their_text_and_get_their_domain() {
    for (text, want) in [
        ("{}", "{\"domain\":\"example.com\"}\n"),
        (" { } ", "{\"domain\":\"example.com\"}\n"),
        ("{\"v\" : 1.10, \"d\":\"\\u00e4 \\/\"}", "{\"v\":1.10,\"d\":\"\\u00e4 \\/\",\"domain\":\"example.com\"}\n"),
        // What looks like the end of a member, in strings at the end of the text.
        ("{\"a\":\",\"}", "{\"a\":\",\",\"domain\":\"example.com\"}\n"),
        ("{\"a\":\":\"}", "{\"a\":\":\",\"domain\":\"example.com\"}\n"),
        ("{\"a\":\"\\\",\\\"\"}", "{\"a\":\"\\\",\\\"\",\"domain\":\"example.com\"}\n"),
        ("{\"domain\":\" EXAMPLE.com\",\"a\":1}", "{\"domain\":\"example.com\",\"a\":1}\n"),
        ("{\"\\u0064omain\":\"example.com\",\"a\":1}", "{\"domain\":\"example.com\",\"a\":1}\n"),
        ("{\"domain\":\"example.com\",\"a\":1}", "{\"domain\":\"example.com\",\"a\":1}\n"),
        ("{\"a\":1,\"b\":2,\"a\":3}", "{\"a\":3,\"b\":2,\"domain\":\"example.com\"}\n"),
        ("{\"a\":1,\"\\u0061\": 3 }", "{\"a\":3,\"domain\":\"example.com\"}\n"),
        ("{\"domain\":\"other\",\"a\":1,\"domain\":\"example.com\"}", "{\"domain\":\"example.com\",\"a\":1}\n"),
        ("[{\"i\":1} , {\"i\":2}]", "{\"i\":1,\"domain\":\"example.com\"}\n{\"i\":2,\"domain\":\"example.com\"}\n"),
        ("[]", ""),
        (
            "{\"p\":{\"domain\":\"x\",\"domain\":\"y\"}}",
            "{\"p\":{\"domain\":\"x\",\"domain\":\"y\"},\"domain\":\"example.com\"}\n",
        ),
    ] {
        assert_eq!(doc(text, example()).as_deref(), Ok(want), "{text}");
    }
}

/// Broken, a name that comes twice would be stored twice. Texts of all lengths are read in blocks.
#[test]
fn a_repeated_name_is_found_wherever_it_stands() {
    for (len, before) in (0..20).flat_map(|len| (0..80).map(move |before| (len, before))) {
        let (name, long) = (&"name of a member, long"[..len], "x".repeat(before));
        let text = format!("{{\"{name}\":1,\"-\":\"{long}\",\"{name}\":2}}");
        let want = format!("{{\"{name}\":2,\"-\":\"{long}\",\"domain\":\"example.com\"}}\n");
        assert_eq!(doc(&text, example()), Ok(want), "{text}");
        let other = format!("{{\"{name}\":1,\"-\":\"{long}\",\"{name}2\":2}}");
        let want = format!("{},\"domain\":\"example.com\"}}\n", other.strip_suffix('}').unwrap());
        assert_eq!(doc(&other, example()), Ok(want), "{other}");
    }
}

/// Broken, white space would be stored, or a bracket, comma or colon too few would be taken.
#[test]
fn white_space_and_damage_are_seen_at_every_place() {
    let tokens = [
        "{",
        "\"a\"",
        ":",
        "\"b\"",
        ",",
        "\"a longer name\"",
        ":",
        "12",
        ",",
        "\"n\"",
        ":",
        "0.5",
        ",",
        "\"o\"",
        ":",
        "{",
        "\"a\"",
        ":",
        "[",
        "1",
        ",",
        "\"x\"",
        "]",
        "}",
        ",",
        "\"t\"",
        ":",
        "true",
        ",",
        "\"summary\"",
        ":",
        "\"long enough for more than one block of bytes, or for two\"",
        "}",
    ];
    let compact = tokens.concat();
    let want = format!("{},\"domain\":\"example.com\"}}\n", compact.strip_suffix('}').unwrap());
    assert_eq!(doc(&compact, example()).as_ref(), Ok(&want));
    for at in 0..=tokens.len() {
        for space in [" ", "\n", "\t\r  \n"] {
            let text = format!("{}{space}{}", tokens[..at].concat(), tokens[at..].concat());
            assert_eq!(doc(&text, example()).as_ref(), Ok(&want), "{text}");
        }
        for wrong in ["\u{a0}", "\0", ",", ":", "}", "]", "1", "\""] {
            let text = format!("{}{wrong}{}", tokens[..at].concat(), tokens[at..].concat());
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
            assert_eq!(doc(&text, example()).is_ok(), is_json, "{text}");
        }
    }
    for at in 0..tokens.len() {
        let text = [&tokens[..at], &tokens[at + 1..]].concat().concat();
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        assert_eq!(doc(&text, example()).is_ok(), is_json, "{text}");
    }
    for at in 0..compact.len() {
        assert_eq!(doc(&compact[..at], example()), Err(Reason::InvalidJson), "{at}");
    }
    for (text, at) in [compact, tokens.join(" ")].iter().flat_map(|text| (0..text.len()).map(move |at| (text, at))) {
        let text = format!("{}x{}", &text[..at], &text[at + 1..]);
        let is_json = serde_json::from_str::<serde::de::IgnoredAny>(&text).is_ok();
        assert_eq!(doc(&text, example()).is_ok(), is_json, "{text}");
    }
}

#[test]
fn the_first_event_names_the_domain_when_nobody_else_does() {
    assert_eq!(
        doc("[{\"domain\":\"a\",\"i\":1},{\"i\":2}]", None).unwrap(),
        "{\"domain\":\"a\",\"i\":1}\n{\"i\":2,\"domain\":\"a\"}\n"
    );
    for (text, want) in [
        ("{\"a\":1}", Reason::DomainMissing),
        ("{\"domain\":5}", Reason::DomainMissing),
        ("{\"domain\":null}", Reason::DomainMissing),
        ("{\"domain\":\"\"}", Reason::DomainMissing),
        ("[{\"i\":1},{\"domain\":\"a\"}]", Reason::DomainMissing),
        ("{\"domain\":\" \"}", Reason::InvalidDomain),
        ("{\"domain\":\"a_b\"}", Reason::InvalidDomain),
        ("{\"domain\":\"\\ud800\"}", Reason::InvalidDomain),
        ("[{\"domain\":\"a\"},{\"domain\":\"b\"}]", Reason::DomainMismatch),
        ("5", Reason::InvalidPayload),
        ("[[{\"domain\":\"a\"}]]", Reason::InvalidPayload),
    ] {
        assert_eq!(doc(text, None), Err(want), "{text}");
    }
    assert_eq!(doc("[]", None).unwrap(), "");
}

#[test]
fn refusals_come_in_the_order_of_the_original() {
    let long = "x".repeat(501);
    for (text, want) in [
        (format!("{{\"domain\":\"other\",\"summary\":\"{long}\"}}"), Reason::SummaryTooLong),
        (format!("[5,{{\"summary\":\"{long}\"}}]"), Reason::InvalidPayload),
        (format!("[{{\"summary\":\"{long}\"}},5]"), Reason::SummaryTooLong),
        ("[5,{bad]".into(), Reason::InvalidJson),
        ("{\"domain\":\"other\",\"a\":NaN}".into(), Reason::DomainMismatch),
        ("[{\"a\":NaN},5]".into(), Reason::InvalidPayload),
        ("{\"a\":NaN}".into(), Reason::InvalidJson),
        ("{\"a\":\"\\ud800\"}".into(), Reason::InvalidJson),
        ("NaN".into(), Reason::InvalidPayload),
        ("{\"domain\":null}".into(), Reason::InvalidPayload),
        ("{\"domain\":\"\"}".into(), Reason::InvalidPayload),
        ("{\"domain\":\"example.com\",\"domain\":\"other\"}".into(), Reason::DomainMismatch),
        ("".into(), Reason::InvalidJson),
        ("{}{}".into(), Reason::InvalidJson),
        ("\u{a0}{}".into(), Reason::InvalidJson),
    ] {
        assert_eq!(doc(&text, example()), Err(want), "{text}");
    }
    assert!(doc(&format!("{{\"summary\":\"{}\"}}", "😀".repeat(500)), example()).is_ok());
    assert_eq!(
        doc(&format!("{{\"summary\":\"{}\"}}", "\\ud83d\\ude00".repeat(501)), example()),
        Err(Reason::SummaryTooLong)
    );
    assert!(
        doc(&format!("{{\"p\":{{\"summary\":\"{long}\"}},\"Summary\":\"{long}\",\"summary\":5}}"), example()).is_ok()
    );
}

#[test]
fn ndjson_is_split_as_the_original_splits_it() {
    let lines = |text: &str| parse(text, Format::Lines, example());
    let two = "{\"a\":1,\"domain\":\"example.com\"}\n{\"a\":2,\"domain\":\"example.com\"}\n";
    for text in [
        "{\"a\":1}\n{\"a\":2}",
        "{\"a\":1}\n\n\n{\"a\":2}\n",
        "  {\"a\":1}\r\n\t{\"a\":2}\u{a0}\u{2028}",
        "\u{2028}{\"a\":1}\n{\"a\":2}\u{1e}",
    ] {
        assert_eq!(lines(text).as_deref(), Ok(two), "{text:?}");
    }
    for text in ["", "   ", "\n\n\n", "\u{2028}"] {
        assert_eq!(lines(text).as_deref(), Ok(""), "{text:?}");
    }
    for (text, line) in [
        ("{\"a\":1}\r\n\r\n{\"a\":2}\r\n", 2),
        ("{\"a\":1}\r{\"a\":2}", 1),
        ("{\"a\":1}\u{85}{\"a\":2}", 1),
        ("{\"a\":1}\u{a0}\n{\"a\":2}", 1),
        ("\n\n{\"a\":1}\n\n{bad", 5),
        ("\u{feff}{}", 1),
        ("{\"a\":\n1}", 1),
        ("{}\n{\"a\":NaN}\n{\"a\":NaN}", 2),
    ] {
        assert_eq!(lines(text), Err(EventError { reason: Reason::InvalidNdjson, line: Some(line) }), "{text:?}");
    }
    assert_eq!(lines("{}\n5\n"), Err(EventError { reason: Reason::InvalidPayload, line: Some(2) }));
    assert_eq!(lines("5\n{bad").map_err(|e| e.reason), Err(Reason::InvalidNdjson));
}

#[test]
fn many_members_are_deduplicated_too() {
    let members: Vec<_> = (0..100).map(|i| format!("\"k{}\":{i}", i % 50)).collect();
    let line = doc(&format!("{{{}}}", members.join(",")), example()).unwrap();
    assert!(
        line.starts_with("{\"k0\":50,\"k1\":51,") && line.ends_with("\"k49\":99,\"domain\":\"example.com\"}\n"),
        "{line}"
    );
}

/// Broken, members would be lost whose long names differ in the middle only, or a name that comes
/// twice would stay twice when it stands where fewer than eight bytes follow.
#[test]
fn names_that_look_alike_are_told_apart() {
    let alike = "{\"12345678-a-12345678\":1,\"12345678-b-12345678\":2,\"12345678\":3,\"\":4}";
    let want = alike.replace('}', ",\"domain\":\"example.com\"}\n");
    assert_eq!(doc(alike, example()).as_deref(), Ok(want.as_str()));
    for name in ["", "a", "1234567", "12345678", "123456789", "12345678-a-12345678"] {
        let twice = format!("{{\"{name}\":1,\"b\":2,\"{name}\":3}}");
        let want = format!("{{\"{name}\":3,\"b\":2,\"domain\":\"example.com\"}}\n");
        assert_eq!(doc(&twice, example()), Ok(want), "{name}");
    }
    for length in 31..36 {
        let mut members: Vec<_> = (0..length).map(|i| format!("\"k{i}\":{i}")).collect();
        members.push("\"k0\":\"last\"".into());
        let line = doc(&format!("{{{}}}", members.join(",")), example()).unwrap();
        assert!(line.starts_with("{\"k0\":\"last\",\"k1\":1,") && !line.contains("\"k0\":0"), "{line}");
    }
}

/// Broken, every event would be written anew, or names that only look alike would be taken for one.
#[test]
fn only_a_name_that_stands_twice_is_repeated() {
    let mut names: Vec<String> = (0..60).map(|n| format!("{}{}", "x".repeat(n % 3), n)).collect();
    names.extend(["", "a\\n", "\\u00e4", "ä2", "\\ud83d\\ude00"].map(String::from));
    let members = |names: &[String]| names.iter().map(|name| format!("\"{name}\":1")).collect::<Vec<_>>().join(",");
    let text = format!("{{{}}}", members(&names));
    assert_eq!(doc(&text, example()).unwrap(), format!("{},\"domain\":\"example.com\"}}\n", &text[..text.len() - 1]));
    for (spelled, name) in
        [("", ""), ("6", "6"), ("\\u0061\\u000a", "a\\n"), ("ä", "\\u00e4"), ("😀", "\\ud83d\\ude00")]
    {
        let text = format!("{{{},\"{spelled}\":2}}", members(&names));
        let want = format!("{{{},", members(&names)).replacen(&format!("\"{name}\":1"), &format!("\"{name}\":2"), 1);
        assert_eq!(doc(&text, example()).unwrap(), format!("{want}\"domain\":\"example.com\"}}\n"), "{spelled}");
    }
}

/// Broken, one body of many names would keep a thread busy for minutes.
#[test]
fn many_names_cost_no_quadratic_time() {
    let members: Vec<_> = (0..32_000).map(|i| format!("\"{i}\":1")).collect();
    let text = format!("{{{}}}", members.join(","));
    // Time on a processor, whatever else the machine does.
    let cpu_ns = || -> u64 {
        let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    };
    let before = cpu_ns();
    assert!(doc(&text, example()).is_ok());
    let ms = (cpu_ns() - before) / 1_000_000;
    // Without optimisation it takes a hundred, and pair by pair ten thousand.
    assert!(ms < 2000, "{ms} ms");
}

#[test]
fn a_written_line_is_recognised_and_others_are_not() {
    let domain = example().unwrap();
    assert!(check_line("{\"a\":1,\"domain\":\"example.com\"}", &domain).is_ok());
    for line in [
        "{\"a\":1}",
        "{\"domain\":\"b\"}",
        "[]",
        "5",
        "",
        "{\"domain\":\"example.com\"} ",
        "[{\"domain\":\"example.com\"}]",
    ] {
        assert!(check_line(line, &domain).is_err(), "{line}");
    }
}

fn object() -> impl Strategy<Value = serde_json::Map<String, serde_json::Value>> {
    let value = prop_oneof![
        any::<i32>().prop_map(Into::into),
        "\\PC{0,8}".prop_map(Into::into),
        Just(serde_json::json!({"x":[1,{}]}))
    ];
    proptest::collection::btree_map("[a-z\"\n]{0,3}", value, 0..8).prop_map(|m| m.into_iter().collect())
}

proptest! {
    /// Broken, what is stored would depend on how much memory there was.
    #[test]
    fn both_ways_write_the_same(text in "\\PC{0,80}|[\\[\\]{}\",:\\\\u0-9domain\n NaI.e-]{0,80}|(\\{(\"[ab\\\\n]{0,3}\":[12],?){0,5}\\}[,\n]?){0,6}", as_lines in any::<bool>(), named in any::<bool>()) {
        let format = if as_lines { Format::Lines } else { Format::Document };
        let domain = example().filter(|_| named);
        let one = Batch::parse(&text, format, domain.clone());
        let mut asked = 0;
        // The first way is refused, the second is not.
        let two = Batch::parse_within(&text, format, domain, Limits::NONE, &mut |_| {
            asked += 1;
            if asked == 1 { Err(Shortage::NotNow) } else { Ok(()) }
        });
        prop_assert_eq!(one.map_err(Refusal::Event), two);
    }

    /// What is stored is what was sent, one line an event, `domain` added.
    #[test]
    fn lines_hold_the_events_that_were_sent(objects in proptest::collection::vec(object(), 0..6), as_lines in any::<bool>()) {
        let texts: Vec<_> = objects.iter().map(|o| serde_json::to_string(o).unwrap()).collect();
        let (text, format) = if as_lines { (texts.join("\n"), Format::Lines) } else { (format!("[{}]", texts.join(", ")), Format::Document) };
        let stored = parse(&text, format, example()).unwrap();
        prop_assert_eq!(stored.matches('\n').count(), objects.len());
        for (line, mut object) in stored.lines().zip(objects) {
            object.insert("domain".into(), "example.com".into());
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(line).unwrap(), serde_json::Value::Object(object));
            prop_assert!(check_line(line, &example().unwrap()).is_ok());
        }
    }

    /// Splitting at `\n` does not depend on what stands on the lines.
    #[test]
    fn a_feed_is_its_lines(lines in proptest::collection::vec("\\{\"a\":[1-9][0-9]{0,2}\\}|", 0..12)) {
        let whole = parse(&lines.join("\n"), Format::Lines, example()).unwrap();
        let single: String = lines.iter().map(|l| parse(l, Format::Lines, example()).unwrap()).collect();
        prop_assert_eq!(whole, single);
    }

    #[test]
    fn any_text_is_judged_without_panic_and_stored_lines_are_sound(text in "\\PC{0,80}|[\\[\\]{}\",:\\\\u0-9domain\n NaI.e-]{0,80}", as_lines in any::<bool>()) {
        let format = if as_lines { Format::Lines } else { Format::Document };
        if let Ok(Some(batch)) = Batch::parse(&text, format, example()) {
            let lines = std::str::from_utf8(batch.lines()).unwrap();
            prop_assert!(lines.ends_with('\n'));
            prop_assert_eq!(lines.lines().count() as u64, batch.events());
            for line in lines.lines() {
                prop_assert!(check_line(line, batch.domain()).is_ok(), "{}", line);
            }
        }
    }
}

/// A text, what it is, and what it may take on top of itself.
fn shapes(bytes: usize) -> Vec<(&'static str, String, Format)> {
    let many = |item: &dyn Fn(usize) -> String, separator: &str| {
        let mut text = String::new();
        for n in 0.. {
            let item = item(n);
            if text.len() + item.len() + 4 > bytes {
                return text;
            }
            if n > 0 {
                text.push_str(separator);
            }
            text.push_str(&item);
        }
        text
    };
    let object = |member: &dyn Fn(usize) -> String| format!("{{{}}}", many(member, ","));
    let array = |item: &dyn Fn(usize) -> String| format!("[{}]", many(item, ","));
    vec![
        ("empty objects", array(&|_| "{}".into()), Format::Document),
        ("empty lines of objects", many(&|_| "{}".into(), "\n"), Format::Lines),
        ("small objects", array(&|n| format!("{{\"n\":{n},\"x\":[true]}}")), Format::Document),
        ("one key", object(&|_| "\"\":1".into()), Format::Document),
        ("one key a line", many(&|_| "{\"a\":1,\"a\":2}".into(), "\n"), Format::Lines),
        ("keys", object(&|n| format!("\"{n:x}\":1")), Format::Document),
        ("escaped keys", object(&|n| format!("\"\\n{n:x}\":1")), Format::Document),
        ("one escaped key", object(&|_| "\"\\n\":1".into()), Format::Document),
        ("domains", object(&|_| "\"domain\":\"A\"".into()), Format::Document),
        ("white space", object(&|n| format!(" \"{n:x}\" : [ 1 , 2 ]")), Format::Document),
        ("nested", array(&|_| format!("{{\"a\":{}{}}}", "[".repeat(500), "]".repeat(500))), Format::Document),
        ("long strings", array(&|_| format!("{{\"a\":\"{}\"}}", "\\n\\u00e4".repeat(5000))), Format::Document),
        ("arrays", array(&|_| "[{}]".into()), Format::Document),
        ("numbers", array(&|_| "5".into()), Format::Document),
        ("a long escaped key", format!("{{\"{}\":1,\"\":1,\"\":2}}", "\\n".repeat(bytes / 2 - 20)), Format::Document),
    ]
}

/// Broken, a body takes many times its size in memory, or memory that nobody has granted; or the two ways to
/// write the same lines write different ones.
#[test]
fn memory_is_asked_for_and_is_within_twice_the_body() {
    for bytes in [1_000, 70_000] {
        for (name, text, format) in shapes(bytes) {
            for domain in ["a", &format!("{0}.{0}.{0}.{1}", "x".repeat(63), "y".repeat(61))] {
                let domain = Some(Domain::parse(domain).unwrap());
                let limits = Limits { events_max: 1 << 30, bytes_max: 2 * text.len().max(100_000) };
                let mut most = 0;
                let got = Batch::parse_within(&text, format, domain.clone(), limits, &mut |bytes| {
                    most = most.max(bytes);
                    Ok(())
                });
                let want = Batch::parse(&text, format, domain.clone());
                match (&got, &want) {
                    (Ok(Some(got)), Ok(Some(want))) => {
                        assert!(got.lines == want.lines && got.events == want.events, "{name}");
                        assert!(
                            got.memory_bytes() <= most && got.memory_bytes() <= 2 * got.lines.len() + SPARE_BYTES_MAX,
                            "{name}: {} of {most}",
                            got.memory_bytes()
                        );
                    }
                    (Err(Refusal::TooLarge), Ok(Some(want))) => {
                        assert!(want.lines.len() > limits.bytes_max, "{name}: {}", want.lines.len());
                    }
                    (Ok(None), Ok(None)) => assert_eq!(text, "[]", "{name}"),
                    (Err(Refusal::Event(got)), Err(want)) => assert_eq!(got, want, "{name}"),
                    other => panic!("{name}: {other:?}"),
                }
                if bytes > GROWING_BYTES_MAX {
                    assert!(most <= 2 * text.len() + text.len() / 16 + 1000, "{name}: {most} for {}", text.len());
                }
                // With nothing at all, and with little.
                for granted in [0, text.len() / 2] {
                    let got = Batch::parse_within(&text, format, domain.clone(), limits, &mut |bytes| {
                        if bytes > granted { Err(Shortage::NotNow) } else { Ok(()) }
                    });
                    let held = got.ok().flatten().map_or(0, |batch| batch.memory_bytes());
                    assert!(held <= granted, "{name}: {held} of {granted}");
                }
            }
        }
    }
}

/// Broken, a request becomes any number of bytes or events, or one at the limit is refused.
#[test]
fn limits_are_for_what_a_body_becomes() {
    for n in [1, 3, 40, 30_000] {
        let text = format!("[{}]", vec!["{}"; n].join(","));
        let bytes = doc(&text, example()).unwrap().len();
        for (events_max, bytes_max, fits) in [
            (n as u64, bytes, true),
            (n as u64 - 1, bytes, false),
            (n as u64, bytes - 1, false),
            (u64::MAX, usize::MAX, true),
        ] {
            let limits = Limits { events_max, bytes_max };
            let got = Batch::parse_within(&text, Format::Document, example(), limits, &mut |_| Ok(()));
            assert_eq!(matches!(got, Ok(Some(_))), fits, "{n}: {limits:?}: {got:?}");
            assert!(fits || got == Err(Refusal::TooLarge));
            // What is wrong comes before what is too large.
            let wrong = format!("{}x", text);
            let got = Batch::parse_within(&wrong, Format::Document, example(), limits, &mut |_| Ok(()));
            assert_eq!(got, Err(Refusal::Event(EventError { reason: Reason::InvalidJson, line: None })));
        }
    }
}
