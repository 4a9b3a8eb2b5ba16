//! A request to a chain.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use hyper::Request;

use super::answer::{self, Answer};
use super::call_id::CallId;
use super::service::{Outcome, Worker, set_deadline};
use super::timing::Timing;
use super::unsent::Client;
use crate::chain::{Call, Chain};

impl Worker {
    /// The chain's result, or why there is none; where the time went; and what its steps took.
    pub(super) async fn run_chain<B>(
        &self,
        chain: Arc<Chain>,
        request: Request<B>,
        name_len: usize,
        call_id: CallId,
        client: Option<&Arc<Client>>,
    ) -> (Outcome<Answer>, Vec<u8>)
    where
        B: http_body::Body<Data = Bytes> + Unpin,
        B::Error: std::fmt::Display,
    {
        // The later steps' processes are made while the body comes in and the first step works.
        chain.prewarm(&*self.dispatcher().bus().transport);
        let limit_bytes = chain.plan.payload_bytes;
        let block = match self.take_in(chain.domain.inbox(), limit_bytes, request, name_len, call_id).await {
            Ok(block) => block,
            Err(refusal) => return (Err((refusal.into(), Timing::NONE)), Vec::new()),
        };
        let begun = Instant::now();
        let deadline = set_deadline(&block, begun, chain.plan.timeout);
        let input = block.place();
        let call = Call::new(self.dispatcher().clone(), Arc::clone(&chain), call_id, deadline, 0, block);
        let went = call.go(&chain.stages, input).await;
        let ended = Instant::now();
        let timeline = call.timeline();
        let (queue_ns, start_ns) = timeline.waits();
        let timing = Timing {
            start: timeline.start(),
            queue_ns,
            start_ns,
            exec_ns: ((ended - begun).as_nanos() as u64).saturating_sub(queue_ns + start_ns),
            ..Timing::NONE
        };
        let steps = timeline.header();
        drop(timeline);
        let answer = went.and_then(|result| answer::of_chain(result, call.into_holdings(), &chain));
        let outcome = match answer {
            Ok(answer) => Ok((self.sent(answer, client, Some(chain.domain.unsent())), timing)),
            Err(failed) => Err((failed, timing)),
        };
        (outcome, steps)
    }
}
