//! The rules that can be taken away, to see that the properties need them.

/// A rule of the protocol, left out in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// An append creates no log.
    AppendCreatesNoLog,
    /// A reader takes only the successor of its position.
    ReadersCheckTheChain,
    /// A new connection starts unverified.
    CheckAfterReconnect,
    /// A reply of an earlier connection verifies nothing.
    OldRepliesVerifyNothing,
    /// Finish compares the log's length.
    FinishComparesLength,
    /// An epoch is never given twice: the clock, or a random step.
    EpochsAreNeverReused,
    /// Nothing is delivered before it is committed.
    CommitThenDeliver,
    /// Whether a turn is new and its acceptance are one step.
    AcceptIsOneStep,
    /// A takeover appends an entry.
    TakeoverAppends,
    /// Release is part of finish.
    FinishReleases,
    /// End and history are one step.
    FinishWritesHistory,
    /// Somebody looks for leases that are over.
    EndedLeasesAreClaimed,
    /// What is in doubt is sent again under its own id.
    RetryKeepsTheId,
    /// A takeover that cannot continue the text voids it first.
    TakeoverResets,
    /// A request for ownership is recognised by a mark of its own, not by who sent it.
    NoncesAreFresh,
    /// A repeated request for ownership brings a new random step.
    RandomStepsAreFresh,
    /// A reader whose position was lost is told only once the log can be read from where the client starts again.
    ReadersWaitForTheRepair,
}
