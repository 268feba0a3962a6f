//! The task of one batch: sends its call, reads the one answer, and gives each ask what is its own.

use std::sync::Arc;

use chatgateway_core::{
    batch::AskId,
    limits::{BATCH_JSON_MAX_BYTES, UPSTREAM_LINE_MAX_BYTES, UPSTREAM_REST},
    sse::SseParser,
};
use http::{StatusCode, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::time::{timeout, timeout_at};

use super::{
    Running,
    recipe::{Dialect, Recipe},
    seat::{Piece, Ride, Seat},
    split::Split,
};
use crate::{
    clock,
    upstream::{
        deadlines::{Awaited, Deadlines},
        failure::Failure,
        pool::Place,
        server::{Opened, Server},
    },
};

/// The asks of a call.
type Seats = Vec<(AskId, Arc<Seat>)>;

/// Makes a call for its asks. It ends with the answer, or when nobody reads it any more.
pub(super) async fn run(running: Running, recipe: Arc<Recipe>, seats: Seats, place: Place, ride: Arc<Ride>) {
    let body = tokio::select! {
        biased;
        () = ride.empty.notified() => None,
        body = answer(&running, &recipe, &seats, place, &ride) => body,
    };
    drop((running, seats));
    if let Some(mut body) = body {
        // The connection can be used again when the rest has come.
        let rest = async { while let Some(Ok(_)) = body.frame().await {} };
        drop(timeout(UPSTREAM_REST, rest).await);
    }
}

/// Reads the answer; what is left of a complete one.
async fn answer(running: &Running, recipe: &Recipe, seats: &Seats, place: Place, ride: &Ride) -> Option<Incoming> {
    let batching = &running.batching;
    let server = batching.server.load_full();
    let prompts: Vec<&str> = seats.iter().map(|(_, seat)| &*seat.prompt).collect();
    let mut opened = match server.send(place, &recipe.call(&prompts)).await {
        Ok(opened) => opened,
        Err(failure) => {
            fail(seats, &failure);
            return None;
        }
    };
    let status = opened.response.status();
    if !status.is_success() {
        // The server is well: what it does not like is a prompt, or batches.
        opened.place.ended();
        drop(opened);
        let simple = recipe.dialect == Dialect::Simple;
        batching.refused(simple && [StatusCode::NOT_FOUND, StatusCode::METHOD_NOT_ALLOWED].contains(&status));
        seats.iter().for_each(|(_, seat)| seat.alone(None));
        return None;
    }
    batching.accepted();
    if let Some(kind) = opened.response.headers().get(header::CONTENT_TYPE) {
        let _ = ride.content_type.set(kind.clone());
    }
    let form = match Form::of(&server.name, recipe.dialect, &opened) {
        Ok(form) => form,
        Err(failure) => {
            fail(seats, &opened.place.failed(failure));
            return None;
        }
    };
    let Opened { place, response, deadlines } = opened;
    let prompts = seats.iter().map(|(_, seat)| (seat.prompt.len(), seat.trim));
    let mut reading = Reading {
        running,
        seats,
        split: Split::new(server.name.clone(), recipe.dialect, prompts),
        form,
        place,
        deadlines,
        begun: false,
        started: vec![false; seats.len()],
        server,
    };
    let mut body = response.into_body();
    match reading.read(&mut body).await {
        Ok(()) => {
            reading.place.ended();
            Some(body)
        }
        Err(failure) => {
            let failure = reading.place.failed(failure);
            // What came before still counts.
            reading.give();
            fail(seats, &failure);
            None
        }
    }
}

/// The same failure for all who have not heard their end.
fn fail(seats: &Seats, failure: &Failure) {
    for (_, seat) in seats {
        seat.push(Piece::Failed(failure.clone()));
    }
}

/// How an answer is written.
enum Form {
    Events(Box<SseParser>),
    Whole(Vec<u8>),
}

impl Form {
    fn of(name: &str, dialect: Dialect, opened: &Opened) -> Result<Self, Failure> {
        if !matches!(dialect, Dialect::Turns | Dialect::Pass { stream: true, .. }) {
            return Ok(Self::Whole(Vec::new()));
        }
        let stream = opened.is_stream(name)?;
        let parser = || Box::new(SseParser::new(UPSTREAM_LINE_MAX_BYTES));
        Ok(if stream { Self::Events(parser()) } else { Self::Whole(Vec::new()) })
    }
}

/// An answer under way.
struct Reading<'a> {
    running: &'a Running,
    seats: &'a Seats,
    server: Arc<Server>,
    split: Split,
    form: Form,
    place: Place,
    deadlines: Deadlines,
    /// Something has come.
    begun: bool,
    /// Who has got something.
    started: Vec<bool>,
}

impl Reading<'_> {
    async fn read(&mut self, body: &mut Incoming) -> Result<(), Failure> {
        while !self.split.is_done() {
            let (deadline, late) = self.deadlines.of(self.awaited(), clock::now());
            let piece = match timeout_at(deadline.into(), body.frame()).await {
                Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
                Ok(Some(Err(error))) if !self.split.is_finished() => {
                    return Err(Failure::broken(&self.server.name, &error));
                }
                Ok(Some(Err(_)) | None) => {
                    self.closed()?;
                    break;
                }
                Err(_) => match late {
                    Some(late) => return Err(self.server.timed_out(late)),
                    None => break,
                },
            };
            self.piece(&piece)?;
            self.give();
        }
        self.split.finish();
        self.give();
        Ok(())
    }

    fn awaited(&self) -> Awaited {
        let stream = matches!(self.form, Form::Events(_));
        match self.begun {
            _ if stream && self.split.is_finished() => Awaited::LastWords,
            false => Awaited::Beginning,
            true => Awaited::More,
        }
    }

    fn piece(&mut self, mut piece: &[u8]) -> Result<(), Failure> {
        match &mut self.form {
            Form::Whole(held) => {
                if held.len() + piece.len() > BATCH_JSON_MAX_BYTES {
                    let what = format!("sent an answer to a batch of more than {BATCH_JSON_MAX_BYTES} bytes");
                    return Err(Failure::unavailable(&self.server.name, &what));
                }
                self.begun |= !piece.is_empty();
                held.extend_from_slice(piece);
            }
            Form::Events(parser) => {
                while !self.split.is_done() {
                    let event =
                        parser.next(&mut piece).map_err(|error| Failure::unreadable(&self.server.name, error))?;
                    let Some(event) = event else { break };
                    self.begun = true;
                    if let Some(failure) = Failure::event(&self.server.name, &event) {
                        return Err(failure);
                    }
                    self.split.event(event.data)?;
                }
            }
        }
        Ok(())
    }

    fn closed(&mut self) -> Result<(), Failure> {
        match &mut self.form {
            Form::Whole(held) => self.split.whole(&std::mem::take(held)),
            Form::Events(_) => Ok(()),
        }
    }

    /// Gives each ask what has come for it.
    fn give(&mut self) {
        for (index, piece) in self.split.take() {
            let Some((ask, seat)) = self.seats.get(index) else { continue };
            let text = matches!(piece, Piece::Text(_) | Piece::Bytes(_));
            if text && !std::mem::replace(&mut self.started[index], true) {
                self.place.begun();
                self.running.batching.first_token(self.running.call, *ask);
            }
            let last = piece.is_last();
            if !seat.push(piece) && !last {
                self.split.left(index);
            }
        }
    }
}
