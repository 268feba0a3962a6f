//! Bad input, against the real process. Each case ends in the right code and a clear message, a bystander chats on
//! unaffected meanwhile, and the process's memory grows by no more than ten times what the abusing client sent.
#![cfg(test)]

mod ground;
mod http;
mod http2;
mod limits;
mod port;
mod reading;
mod websocket;
