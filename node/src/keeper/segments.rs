//! Instances ask for the segments that they meet; they get those of their own chain and no other.

use std::convert::Infallible;
use std::sync::Arc;

use shm_bus::segment::SegmentName;
use shm_bus::transport::FaultKind;
use spry_wire::control::{FromInstance, ToInstance};

use crate::function::Function;
use crate::instance::{Doom, Instance};
use crate::zygote::InstanceProcess;

/// Questions about segments that an instance may not see, in its life. One that goes on is guessing.
const REFUSALS_MAX: u32 = 256;

/// Answers an instance's questions as long as it asks.
pub(super) async fn serve(
    function: &Function,
    instance: &Arc<Instance>,
    process: &InstanceProcess,
) -> Infallible {
    let mut refusals = 0;
    loop {
        let asked = match process.request().await {
            Ok(FromInstance::Map { segment, generation }) => SegmentName { id: segment, generation },
            Ok(other) => {
                tracing::warn!(
                    function = function.name(),
                    pid = instance.pid,
                    ?other,
                    "an instance is out of turn"
                );
                instance.kill(Doom::Fault(FaultKind::Malformed));
                return std::future::pending().await;
            }
            // It has closed its socket, or speaks nonsense: its bus socket tells the rest.
            Err(_) => return std::future::pending().await,
        };
        let outbox = function.domain.as_ref().and_then(|domain| domain.outbox(asked));
        let replied = match &outbox {
            Some(outbox) => {
                let message = ToInstance::Segment { len: outbox.instance.outbox.len() as u32 };
                process.reply(&message, &[outbox.fd()]).await
            }
            None => {
                refusals += 1;
                let why = "no such segment in this function's chain".to_owned();
                process.reply(&ToInstance::Refused { why }, &[]).await
            }
        };
        if replied.is_err() {
            return std::future::pending().await;
        }
        if refusals > REFUSALS_MAX {
            tracing::warn!(function = function.name(), pid = instance.pid, "an instance guesses at segments");
            instance.kill(Doom::Fault(FaultKind::Malformed));
            return std::future::pending().await;
        }
    }
}
