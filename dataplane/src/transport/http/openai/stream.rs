//! An answer as OpenAI's stream of chunks.

use std::{convert::Infallible, time::Duration};

use axum::{
    body::{Body, Bytes},
    response::Response,
};
use chatgateway_core::{error::ErrorCode, limits::SSE_CHUNK_BYTES, log::Usage};
use futures_util::stream;
use tokio::{
    sync::watch,
    time::{Instant, sleep_until},
};

use super::{
    source::{Piece, Source},
    wire::{Wire, write_error},
};
use crate::transport::http::{answer, leaving::deadline, problem::Problem, sse};

type Drain = watch::Receiver<Option<chatgateway_core::drain::DrainPlan>>;

/// A stream of chunks over one or, for `/v1/completions` with several prompts, more answers, one after the other.
pub struct ChunkStream {
    wire: Wire,
    /// The answer that runs is the last one; its index is `index`.
    sources: Vec<Source>,
    index: usize,
    usage: Usage,
    drain: Drain,
    ping_interval: Duration,
    last_sent: Instant,
    out: Vec<u8>,
    /// Text of the answer that runs has gone out: it cannot be taken back.
    said: bool,
    ended: bool,
}

impl ChunkStream {
    /// Waits for the first text, so that the status can still say what went wrong, and begins the stream.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn start(
        wire: Wire,
        mut sources: Vec<Source>,
        mut drain: Drain,
        ping_interval: Duration,
    ) -> Result<Self, Problem> {
        sources.reverse();
        let first = match sources.last_mut() {
            Some(source) => tokio::select! {
                piece = source.first() => piece,
                () = deadline(&mut drain) => Piece::Failed(answer::going_away()),
            },
            None => Piece::Failed(Problem::new(ErrorCode::Internal, "nothing was asked")),
        };
        if let Piece::Failed(problem) = first {
            return Err(problem);
        }
        let mut stream = Self {
            wire,
            sources,
            index: 0,
            usage: Usage::default(),
            drain,
            ping_interval,
            last_sent: Instant::now(),
            out: Vec::new(),
            said: false,
            ended: false,
        };
        stream.wire.write_first(&mut stream.out, 0);
        stream.take(first);
        Ok(stream)
    }

    /// The HTTP answer.
    pub fn into_response(self) -> Response {
        let chunks = stream::unfold(self, |mut chunks| async move {
            let chunk = chunks.chunk().await?;
            Some((Ok::<_, Infallible>(chunk), chunks))
        });
        sse::event_stream(Body::from_stream(chunks))
    }

    async fn chunk(&mut self) -> Option<Bytes> {
        loop {
            while !self.ended && self.out.len() < SSE_CHUNK_BYTES {
                let Some(piece) = self.sources.last_mut().and_then(Source::try_next) else { break };
                self.take(piece);
            }
            if !self.out.is_empty() {
                self.last_sent = Instant::now();
                return Some(std::mem::take(&mut self.out).into());
            }
            let source = self.sources.last_mut().filter(|_| !self.ended)?;
            tokio::select! {
                piece = source.next() => self.take(piece),
                () = deadline(&mut self.drain) => self.take(Piece::Failed(answer::going_away())),
                () = sleep_until(self.last_sent + self.ping_interval) => self.out.extend_from_slice(sse::HEARTBEAT),
            }
        }
    }

    fn take(&mut self, piece: Piece) {
        match piece {
            Piece::Text(text) => {
                self.said = true;
                self.wire.write_text(&mut self.out, self.index, &text);
            }
            Piece::Restart if !self.said => {}
            Piece::Restart => self.fail(&Problem::new(
                ErrorCode::UpstreamUnavailable,
                "the answer had to begin anew, and what was sent cannot be taken back here; ask again",
            )),
            Piece::End { finish_reason, usage } => self.end_of_one(&finish_reason, usage),
            Piece::Failed(problem) => self.fail(&problem),
        }
    }

    fn end_of_one(&mut self, finish_reason: &str, usage: Usage) {
        self.usage.prompt_tokens += usage.prompt_tokens;
        self.usage.completion_tokens += usage.completion_tokens;
        self.usage.total_tokens += usage.total_tokens;
        self.wire.write_end(&mut self.out, self.index, finish_reason);
        self.sources.pop();
        self.index += 1;
        self.said = false;
        if self.sources.is_empty() {
            self.wire.write_done(&mut self.out, self.usage);
            self.ended = true;
        }
    }

    fn fail(&mut self, problem: &Problem) {
        write_error(&mut self.out, problem);
        self.sources.clear();
        self.ended = true;
    }
}
