use proptest::prelude::*;

use super::*;

type Owned = (String, String, String);

/// Reads pieces; the events, and the error that ended them.
fn read(max_bytes: usize, pieces: &[&[u8]]) -> (Vec<Owned>, Option<SseError>) {
    let mut parser = SseParser::new(max_bytes);
    let mut events = Vec::new();
    for piece in pieces {
        let mut rest = *piece;
        loop {
            match parser.next(&mut rest) {
                Ok(Some(e)) => events.push((e.event.to_owned(), e.data.to_owned(), e.id.to_owned())),
                Ok(None) => break,
                Err(error) => return (events, Some(error)),
            }
        }
        assert!(rest.is_empty());
    }
    (events, None)
}

fn data(text: &str) -> Vec<String> {
    let (events, error) = read(1_000, &[text.as_bytes()]);
    assert_eq!(error, None);
    events.into_iter().map(|event| event.1).collect()
}

/// The format once more, over the whole text at once: what the parser is held against.
fn reference(text: &str) -> Vec<Owned> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    let mut lines: Vec<&str> = text.split('\n').collect();
    lines.pop();
    let (mut events, mut data, mut event, mut id) = (Vec::new(), Vec::new(), String::new(), String::new());
    for line in lines {
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" if line.is_empty() => {
                if !data.is_empty() {
                    let name = if event.is_empty() { "message".to_owned() } else { event.clone() };
                    events.push((name, data.join("\n"), id.clone()));
                }
                data.clear();
                event.clear();
            }
            "data" => data.push(value.to_owned()),
            "event" => event = value.to_owned(),
            "id" if !value.contains('\0') => id = value.to_owned(),
            _ => {}
        }
    }
    events
}

#[test]
fn lines_end_in_three_ways() {
    for text in ["data: a\n\ndata: b\n\n", "data: a\r\rdata: b\r\r", "data: a\r\n\r\ndata: b\r\n\r\n"] {
        assert_eq!(data(text), ["a", "b"], "{text:?}");
    }
}

#[test]
fn data_lines_are_joined_and_lose_one_space() {
    assert_eq!(data("data: a\ndata:b\ndata:  c\ndata\n\n"), ["a\nb\n c\n"]);
    assert_eq!(data("data\n\n"), [""]);
}

#[test]
fn what_is_no_data_gives_no_event() {
    assert_eq!(data(": a comment\n\nevent: x\n\nretry: 5\nnonsense\n\n"), Vec::<String>::new());
    assert_eq!(data("data: never ended\n"), Vec::<String>::new());
}

#[test]
fn an_event_has_its_type_and_the_last_id() {
    let (events, _) = read(100, &[b"event: delta\nid: 7-1\ndata: x\n\ndata: y\n\nid: a\0b\ndata: z\n\n"]);
    let told: Vec<_> = events.iter().map(|e| (e.0.as_str(), e.1.as_str(), e.2.as_str())).collect();
    assert_eq!(told, [("delta", "x", "7-1"), ("message", "y", "7-1"), ("message", "z", "7-1")]);
}

#[test]
fn a_byte_order_mark_counts_only_at_the_start() {
    assert_eq!(data("\u{feff}data: a\n\n\u{feff}data: b\n\n"), ["a"]);
}

#[test]
fn a_line_above_the_bound_is_an_error_before_it_is_held() {
    let mut parser = SseParser::new(1_000);
    let piece = [b'x'; 100];
    for _ in 0..10 {
        assert_eq!(parser.next(&mut &piece[..]), Ok(None));
    }
    let error = SseError::TooLong { max_bytes: 1_000 };
    assert_eq!(parser.next(&mut &piece[..]), Err(error));
    assert_eq!(parser.next(&mut &b"data: a\n\n"[..]), Err(error));
    assert!(parser.line.capacity() == 0);
}

#[test]
fn an_event_of_many_lines_has_the_same_bound() {
    let (events, error) = read(1_000, &vec![&b"data\n"[..]; 1_002]);
    assert_eq!((events.len(), error), (0, Some(SseError::TooLong { max_bytes: 1_000 })));
}

#[test]
fn text_that_is_not_utf8_is_an_error() {
    assert_eq!(
        read(100, &[b"data: ok\n\ndata: \xff\xfe\n\n"]),
        (vec![("message".into(), "ok".into(), String::new())], Some(SseError::NotUtf8))
    );
}

#[test]
fn memory_of_a_large_event_is_given_back() {
    let mut parser = SseParser::new(1 << 20);
    let large = format!("data: {}\n\n", "x".repeat(1 << 19));
    for piece in large.as_bytes().chunks(1_000) {
        let mut rest = piece;
        while parser.next(&mut rest).unwrap().is_some() {}
    }
    assert_eq!(parser.next(&mut &b":\n"[..]), Ok(None));
    assert!(parser.data.capacity() + parser.line.capacity() <= 2 * BUFFER_KEPT_BYTES);
}

/// Streams that are dense in what matters: line ends, colons, known fields, characters of several bytes.
fn stream() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        Just("data: "),
        Just("data:"),
        Just("data"),
        Just("event: "),
        Just("id: "),
        Just(": "),
        Just("retry: 1"),
        Just("\n"),
        Just("\r"),
        Just("\r\n"),
        Just("\n\n"),
        Just("\r\n\r\n"),
        Just("\u{feff}"),
        Just("héllo"),
        Just("日本語"),
        Just("🦀"),
        Just(" "),
        Just("\0"),
    ];
    prop::collection::vec(part, 0..60).prop_map(|parts| parts.concat())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_chunking_gives_the_same_events(text in stream(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..40)) {
        let bytes = text.as_bytes();
        let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        cuts.extend([0, bytes.len()]);
        cuts.sort_unstable();
        let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &bytes[cut[0]..cut[1]]).collect();
        let expected = reference(&text);
        prop_assert_eq!(&read(10_000, &pieces), &(expected.clone(), None));
        let single: Vec<&[u8]> = bytes.chunks(1).collect();
        prop_assert_eq!(&read(10_000, &single), &(expected, None));
    }

    #[test]
    fn no_input_holds_more_than_the_bound(bytes in prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n'), Just(b':')], 0..2_000)) {
        let mut parser = SseParser::new(64);
        let mut rest = &bytes[..];
        while let Ok(Some(event)) = parser.next(&mut rest) {
            prop_assert!(event.data.len() <= 64 && event.event.len() <= 64 && event.id.len() <= 64);
        }
        prop_assert!(parser.line.len() <= 64 && parser.data.len() <= 65);
    }
}
