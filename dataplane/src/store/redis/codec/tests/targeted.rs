//! What random schedules do not reach.

use std::sync::Arc;

use chatgateway_core::{
    error::ErrorCode,
    log::{Entry, EntryId, EntryKind, TakeoverReason, TurnId, Usage},
};

use super::{
    super::{decode_news, encode_news},
    News,
};

#[test]
fn news_come_back_as_they_were() {
    let texts = ["", "x", "a\nb\n", "Grüße 🦀", "k 1\nt\n", "\u{0}"];
    let mut kinds =
        vec![EntryKind::Reset, EntryKind::Cancelled, EntryKind::Takeover { reason: TakeoverReason::Expired }];
    for text in texts {
        kinds.push(EntryKind::Turn { seq: u64::MAX, text: text.into() });
        kinds.push(EntryKind::Delta { text: text.into() });
        kinds.push(EntryKind::Failed { code: ErrorCode::Internal, message: text.into() });
        let usage = Usage { prompt_tokens: 1, completion_tokens: 0, total_tokens: u64::MAX };
        kinds.push(EntryKind::Done { finish_reason: text.into(), usage });
    }
    let turn = TurnId::parse("a turn: of 1 client").unwrap();
    let entries = kinds.into_iter().zip([None, Some(EntryId::ZERO), Some(EntryId::new(7, 3))].into_iter().cycle());
    for (kind, after) in entries {
        let news = News::Entry(Arc::new(Entry { id: EntryId::new(9, 1), after, turn: turn.clone(), kind }));
        let message = encode_news(&news);
        assert_eq!(decode_news(&message), Some(news));
        for cut in 0..message.len() {
            assert_eq!(decode_news(&message[..cut]).filter(|news| !matches!(news, News::Entry(_))), None);
        }
    }
    for news in [News::Reread, News::Deleted] {
        assert_eq!(decode_news(&encode_news(&news)), Some(news));
    }
    for message in
        [&b""[..], b"X", b"E", b"E 1-1", b"E 1-1\n", b"E 1-1\nk 9\nd\n", b"E 1-1\nk 99999999999999999999\nd", b"\xff"]
    {
        assert_eq!(decode_news(message), None, "{message:?}");
    }
}
