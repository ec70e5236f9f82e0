//! One step of DP-SGD.

use super::{Stepped, Trainer, local::part_seed, mean};
use crate::{Examples, Optimizer, RuntimeError, adapter, private::Private};

impl Trainer {
    /// One step on the examples at `indices`, of which there may be none: the gradient of each is clipped, noise is added
    /// to their sum, and the optimizer makes a step along that, divided by the size that batches have in the mean.
    ///
    /// A loss that is no number leaves the adapter as it is.
    pub(super) fn private_step(
        &mut self,
        optimizer: &mut Optimizer,
        private: &mut Private,
        examples: &dyn Examples,
        indices: &[usize],
    ) -> Result<Stepped, RuntimeError> {
        self.training(true)?;
        optimizer.begin();
        let clip_norm = private.spec.clip_norm;
        private.sum.clear();
        private.sum.resize(self.layout().values(), 0.0);
        let (mut loss, mut correct, mut count, mut weight) = (0.0, 0, 0, 0.0);
        for (part, number) in indices.chunks(private.micro_batch).zip(0..) {
            self.clip_to(clip_norm);
            let measured = self.run_training(part_seed(self.dropout, number), examples, part)?;
            private.seen += part.len() as u64;
            private.clipped += measured.clipped.max(0).cast_unsigned();
            let measured = super::stepped(measured);
            if !measured.loss.is_finite() {
                return Ok(measured);
            }
            loss += f64::from(measured.loss) * measured.weight;
            correct += measured.correct;
            count += measured.count;
            weight += measured.weight;
            let gradients = self.training.as_ref().map_or(&[][..], |training| training.gradients());
            adapter::read(gradients, self.memory.residence, &mut private.part)?;
            private.sum.iter_mut().zip(&private.part).for_each(|(sum, part)| *sum += part);
        }
        let deviation = private.spec.noise_multiplier * clip_norm;
        private.draws.noise(deviation, private.batch as f64, &mut private.sum);
        let Self { training: Some(training), folder, memory, .. } = self else {
            return Err(RuntimeError::Run("the training session is gone".to_owned()));
        };
        let layout = &folder.manifest().adapter;
        adapter::write(training.gradients_mut(), layout, memory.residence, &private.sum)?;
        optimizer.step(&mut self.adapter, training.gradients(), 1.0)?;
        Ok(Stepped { loss: mean(loss, weight) as f32, correct, count, weight })
    }

    fn clip_to(&mut self, norm: f64) {
        if let Some(training) = &mut self.training {
            training.clip_to(norm);
        }
    }
}
