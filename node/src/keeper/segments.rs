//! Instances ask for the segments that they meet; they get those of their own chain and no other.
//!
//! The runtime asks one question at a time, in one packet, and reads the answer. Who does anything else isn't it, and is
//! ended: so nothing piles up in the socket, no descriptors either, which the kernel would count against the user that
//! the function's zygote has as well.

use std::convert::Infallible;
use std::sync::Arc;

use shm_bus::segment::SegmentName;
use shm_bus::transport::FaultKind;
use spry_wire::control::{FromInstance, ToInstance};

use crate::function::Function;
use crate::instance::{Doom, Instance};
use crate::zygote::{ChannelError, InstanceProcess};

/// Questions about segments that an instance may not see, in its life. One that goes on is guessing.
const REFUSALS_MAX: u32 = 256;

/// Answers an instance's questions as long as it asks.
pub(super) async fn serve(
    function: &Function,
    instance: &Arc<Instance>,
    process: &InstanceProcess,
) -> Infallible {
    let why = match answer(function, process).await {
        // Its bus socket, or its death, tells the rest.
        Err(ChannelError::Closed) => return std::future::pending().await,
        Err(error) => error.to_string(),
        Ok(why) => why.to_owned(),
    };
    tracing::warn!(
        function = function.name(),
        pid = instance.pid,
        why,
        "an instance abuses its control socket"
    );
    instance.kill(Doom::Fault(FaultKind::Malformed));
    std::future::pending().await
}

/// Goes on until there is a reason to end the instance.
async fn answer(function: &Function, process: &InstanceProcess) -> Result<&'static str, ChannelError> {
    let mut refusals = 0;
    loop {
        let FromInstance::Map { segment, generation } = process.request().await? else {
            return Ok("it says what it has said before");
        };
        let asked = SegmentName { id: segment, generation };
        let outbox = function.domain.as_ref().and_then(|domain| domain.outbox(asked));
        match &outbox {
            Some(outbox) => {
                let message = ToInstance::Segment { len: outbox.instance.outbox.len() as u32 };
                process.reply(&message, &[outbox.fd()])?;
            }
            None => {
                refusals += 1;
                let why = "no such segment in this function's chain".to_owned();
                process.reply(&ToInstance::Refused { why }, &[])?;
            }
        }
        if refusals > REFUSALS_MAX {
            return Ok("it guesses at segments");
        }
    }
}
