"""Sharpness-aware minimization (Foret et al. 2021, arXiv:2010.01412).

    python train.py --flagfile=flowers.flags --extension=examples/sam.py --workdir=runs/sam

Each step takes the gradient where the loss is about highest within a distance RHO of the weights
(equations 2 and 3), and applies it to the weights. Two passes for a step; the losses that are
reported are those of the first.
"""

import tensorflow as tf

from tl_research.training.steps import TrainStep

RHO = 0.05


class Step(TrainStep):
    def step(self, batch_of, rate, scale):
        gradients, loss, sums = self.summed_gradients(batch_of, scale)  # of all replicas
        norm = tf.linalg.global_norm(gradients)  # a loss scale divides out
        weights = [tf.identity(variable) for variable in self.variables]
        for variable, gradient in zip(self.variables, gradients):
            variable.assign_add(RHO * tf.math.divide_no_nan(gradient, norm))
        gradients, _, _ = self.summed_gradients(batch_of, scale)
        for variable, weight in zip(self.variables, weights):
            variable.assign(weight)  # to the bit, and so too where float16 gave no number
        return self.update(gradients, loss, sums, rate, scale)
