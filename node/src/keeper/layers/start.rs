//! A zygote's start: from a layer where there is one, else by itself; what is learnt from it.

use std::time::Instant;

use super::super::{Keeper, memory};
use super::fit;
use super::known::{Took, Version};
use crate::api::ZygoteStart;
use crate::function::Function;
use crate::zygote::{StartError, Zygote, ZygoteSpec};

impl Keeper {
    /// Starts a function's zygote: from a layer, if there is one for it.
    pub(in crate::keeper) async fn start_process(
        &self,
        function: &Function,
        spec: &ZygoteSpec,
    ) -> Result<Zygote, StartError> {
        let Some((key, ground)) = self.layers.key(&function.stored, spec) else {
            let begun = Instant::now();
            let zygote = Zygote::start(&self.executor, spec).await?;
            function.set_start(ZygoteStart::alone(begun.elapsed(), None));
            return Ok(zygote);
        };
        let chosen = self.layers.choose(&key);
        let mut failed = None;
        if let Some(layer) = &chosen {
            let begun = Instant::now();
            match Zygote::start_on(&self.executor, spec, layer).await {
                Ok(zygote) => {
                    let took = begun.elapsed();
                    self.layers.restored(layer, zygote.restore_cpu_time().unwrap_or(took));
                    let alone_ns = self.layers.known.borrow().get(&key).map(|version| version.start_ns);
                    function.set_start(ZygoteStart {
                        took_ms: took.as_secs_f64() * 1e3,
                        layer_modules: Some(layer.imports().modules.len() as u32),
                        alone_ms: alone_ns.map(|ns| ns as f64 / 1e6),
                        problem: None,
                    });
                    self.layers.started(key, ground, None);
                    return Ok(zygote);
                }
                Err(error) => failed = Some((layer, error)),
            }
        }
        let begun = Instant::now();
        let zygote = Zygote::start(&self.executor, spec).await?;
        let took = begun.elapsed();
        let problem = failed.as_ref().map(|(_, error)| error.to_string());
        if let Some((layer, error)) = failed {
            tracing::warn!(function = function.name(), %error, "a zygote couldn't begin from its layer, and did by itself");
            self.layers.failed(layer, &key, &error);
        }
        function.set_start(ZygoteStart::alone(took, problem));
        let limit_bytes = spec.limits.memory_bytes;
        // (What can't be listed, or lies elsewhere, has whatever is looked for: no layer then.)
        let own = if zygote.imports().elsewhere { None } else { fit::own_names(&spec.code) };
        let version = Version::new(
            zygote.imports().modules.clone(),
            Took { wall: took, cpu: zygote.cpu_time().unwrap_or(took) },
            memory::held_bytes(zygote.pid()).unwrap_or(limit_bytes),
            limit_bytes,
            own,
        );
        self.layers.started(key, ground, Some(version));
        Ok(zygote)
    }
}
