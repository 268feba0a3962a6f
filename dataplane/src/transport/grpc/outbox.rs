//! What a stream sends next.

use std::{collections::VecDeque, future::Future, pin::Pin};

use chatgateway_proto::v1::ServerMessage;
use futures_util::{Stream, stream};
use tonic::Status;

/// A stream of messages, as the generated service wants it.
pub(super) type Messages = Pin<Box<dyn Stream<Item = Result<ServerMessage, Status>> + Send>>;

/// Messages that wait to be taken by the codec, and how the stream ends after them. The codec takes all that is there
/// before it sends, so what is ready together leaves in one frame.
pub(super) struct Outbox {
    messages: VecDeque<ServerMessage>,
    end: Option<Result<(), Status>>,
    over: bool,
}

impl Outbox {
    /// An outbox that holds these messages.
    pub fn new(messages: impl IntoIterator<Item = ServerMessage>) -> Self {
        Self { messages: messages.into_iter().collect(), end: None, over: false }
    }

    /// One more message.
    pub fn put(&mut self, message: ServerMessage) {
        if self.end.is_none() {
            self.messages.push_back(message);
        }
    }

    /// Nothing after what it holds but this status. The first one counts.
    pub fn end(&mut self, end: Result<(), Status>) {
        self.end.get_or_insert(end);
    }
}

/// What fills an outbox.
pub(super) trait Source: Send + 'static {
    /// Its outbox.
    fn out(&mut self) -> &mut Outbox;

    /// Waits for something to happen, and puts what follows from it into the outbox. Called when that is empty.
    fn step(&mut self) -> impl Future<Output = ()> + Send;
}

/// The stream of a source.
pub(super) fn stream(source: impl Source) -> Messages {
    // Boxed once here: the stream hands its state on for each message.
    Box::pin(stream::unfold(Box::new(source), |mut source| async move {
        loop {
            let out = source.out();
            if let Some(message) = out.messages.pop_front() {
                return Some((Ok(message), source));
            }
            match out.end.take() {
                _ if out.over => return None,
                Some(Ok(())) => return None,
                Some(Err(status)) => {
                    out.over = true;
                    return Some((Err(status), source));
                }
                None => source.step().await,
            }
        }
    }))
}
