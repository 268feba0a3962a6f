//! What a reply, or its absence, means.

use std::{sync::Arc, time::Instant};

use super::{Owner, OwnerEffect, Release, Sent, turn::Stage};
use crate::log::{CheckReply, ClaimReply, Entry, Finish, FinishReply, Reply, Unknown};

impl Owner {
    pub(super) fn settle(
        &mut self,
        result: Result<Reply, Unknown>,
        connection: u64,
        now: Instant,
        out: &mut Vec<OwnerEffect>,
    ) {
        let Some(sent) = self.call.take() else { return };
        // What an earlier connection said may be about a store that is no longer the store.
        let present = connection == self.connection;
        match (sent, result) {
            (Sent::Append { entry, bytes }, Ok(Reply::Append(true))) => self.committed(entry, bytes, out),
            (Sent::Check, Ok(Reply::Check(reply))) if present => self.checked(reply, now, out),
            (Sent::Check, Ok(Reply::Check(_))) => {}
            (Sent::Read, Ok(Reply::Read(page))) => self.recover(page, now, out),
            (Sent::Finish(finish), Ok(Reply::Finish(reply))) => self.finished(finish, reply, now, out),
            (Sent::Reset(reset), Ok(Reply::Reset(true))) => {
                self.attempts = 0;
                self.end = reset.entry.id;
                self.len += 1;
                self.turn.entries += 1;
                out.push(OwnerEffect::Deliver(reset.entry));
                self.after_reset(out);
            }
            (Sent::Claim(_), Ok(Reply::Claim(reply))) => {
                // Where its log ends is as fresh as can be; unless the reply came over an earlier connection, see below.
                self.verified = true;
                self.claimed(reply, now, out);
            }
            (Sent::EndLease, Ok(_)) => self.release(Release::Drained, out),
            // Refused, for whatever reason: that is no answer about ownership.
            (sent @ Sent::Append { .. }, Ok(Reply::Append(false))) => {
                self.doubt = Some(sent);
                self.refused(now);
            }
            (Sent::Reset(_), Ok(Reply::Reset(false))) => self.refused(now),
            (sent, _) => self.lost(sent, now, out),
        }
        if !present {
            self.verified = false;
        }
    }

    /// What the check said that was sent behind an append. The append is settled: committed, or in doubt.
    pub(super) fn looked(
        &mut self,
        result: Result<Reply, Unknown>,
        connection: u64,
        now: Instant,
        out: &mut Vec<OwnerEffect>,
    ) {
        if !std::mem::take(&mut self.looking) {
            return;
        }
        let present = connection == self.connection;
        match result {
            Ok(Reply::Check(reply)) if present => {
                self.checked(reply, now, out);
                if self.doubt.is_none() {
                    // There is nothing to try again.
                    self.retry_at = None;
                }
            }
            Ok(_) => {}
            Err(Unknown) => self.lost(Sent::Check, now, out),
        }
        if !present {
            self.verified = false;
        }
    }

    /// The outcome is not known.
    fn lost(&mut self, sent: Sent, now: Instant, out: &mut Vec<OwnerEffect>) {
        self.attempts += 1;
        self.verified = false;
        match sent {
            Sent::Check | Sent::Read => {}
            Sent::EndLease if self.gives_up_ending() => return self.release(Release::Drained, out),
            sent => self.doubt = Some(sent),
        }
        self.back_off(now);
    }

    /// The store did not do what was asked: look at once, and more slowly if that does not help.
    fn refused(&mut self, now: Instant) {
        self.verified = false;
        self.attempts += 1;
        if self.attempts > 1 {
            self.back_off(now);
        }
    }

    fn committed(&mut self, entry: Arc<Entry>, bytes: usize, out: &mut Vec<OwnerEffect>) {
        self.attempts = 0;
        self.end = entry.id;
        self.len += 1;
        self.turn.entries += 1;
        // Text that is void is not the answer's.
        if matches!(self.turn.stage, Stage::Answer) {
            self.turn.committed += bytes;
        }
        out.push(OwnerEffect::Deliver(entry));
        self.resume_upstream(out);
    }

    fn checked(&mut self, reply: CheckReply, now: Instant, out: &mut Vec<OwnerEffect>) {
        if !reply.mine {
            return self.release(Release::NotMine, out);
        }
        let as_known = reply.end == Some(self.end) && reply.len == self.len;
        match self.doubt.take() {
            None if as_known => self.verified = true,
            // It did not go in: the same bytes again. A pod that goes away leaves it to the next owner.
            Some(append) if as_known => {
                self.verified = true;
                self.doubt = Some(append).filter(|_| !self.handing_over());
            }
            Some(Sent::Append { entry, bytes }) if reply.end == Some(entry.id) && reply.len == self.len + 1 => {
                self.verified = true;
                self.committed(entry, bytes, out);
            }
            // Entries are lost. The next owner repairs it where this one goes away.
            _ if self.handing_over() => {}
            _ => {
                self.verified = false;
                self.doubt = Some(self.claim_after_loss());
            }
        }
        if reply.cancel {
            self.on_cancel(out);
        }
        if self.attempts > 1 && self.doubt.is_some() {
            self.back_off(now);
        }
    }

    fn finished(&mut self, finish: Finish, reply: FinishReply, now: Instant, out: &mut Vec<OwnerEffect>) {
        let next = match reply {
            FinishReply::Refused => return self.refused(now),
            FinishReply::Ended { appended, next } => {
                self.deliver(&appended, out);
                next
            }
            FinishReply::Already { next } => {
                // Ended by this very request, whose first reply was lost, or by another pod: only the log can tell.
                out.push(OwnerEffect::Reread);
                next
            }
        };
        self.attempts = 0;
        let next = next.filter(|own| own.epoch == finish.epoch);
        match next {
            Some(own) => self.start_turn(own, now, out),
            None => self.release(Release::Idle, out),
        }
    }

    /// After a loss: the same turn is told again from memory, another one is taken over.
    fn claimed(&mut self, reply: ClaimReply, now: Instant, out: &mut Vec<OwnerEffect>) {
        let ClaimReply::Owner(own) = reply else { return self.release(Release::NotMine, out) };
        self.attempts = 0;
        self.next_check = now + crate::limits::CHECK_INTERVAL;
        if own.appended.is_empty() {
            out.push(OwnerEffect::Reread);
        }
        self.deliver(&own.appended, out);
        if own.turn == self.turn.id {
            self.repair(own, out);
        } else {
            self.stop_upstream(out);
            self.start_turn(own, now, out);
        }
    }
}
