"""What each parameter means, in a line; `discern schema` shows them to editors and the documentation to readers."""

from __future__ import annotations

_SIDED = {
    "layers": "Sizes of the hidden layers, in the order in which cells pass them.",
    "norm_type": "For each layer `layernorm`, `batchnorm`, `conditionallayernorm` or `conditionalbatchnorm`. "
    "Conditional: with an offset that each batch learns. By default `conditionallayernorm`.",
    "regularization": "Dropout rate after each layer.",
    "conditional_regularization": "Regulariser of the offsets that batches learn; by default none.",
}

DESCRIPTIONS: dict[str, dict[str, str]] = {
    "ParameterFile": {
        "exp_param": "What holds for all experiments.",
        "experiments": "EXPERIMENT by name. The name is that of its folder below `experiments_dir`.",
    },
    "ExpParam": {"experiments_dir": "The folder that gets a folder for each experiment; relative to the current one."},
    "Experiment": {
        "input_ds": "The cells and how they are prepared.",
        "model": "The network and its losses.",
        "training": "How it is trained.",
        "hyperparameter_search": "Path of a search file for `discern optimize`.",
        "preset": '`"auto"` fills in what is not given with what did best on held-out cells of real data.',
    },
    "InputDs": {
        "raw_input": "Paths of files with raw counts, relative to the current folder. The batch of a cell is in the "
        "obs column `batch`; without one it is the name of the file. Or {path: obs column with the batch}; null for "
        "`batch`, false for the name of the file. Or {path: {`batch`: column, `layer`: where the counts are}}: name "
        "of a layer, `raw` for `.raw.X`, `X` for X even if it looks normalised. Required in files.",
        "filtering": "Which cells and genes are kept.",
        "scale": "Normalisation and standardisation.",
        "split": "Which cells train, validate and test.",
        "n_cpus_preprocessing": "CPUs for preprocessing; by default all. More than there are is clamped.",
    },
    "Filtering": {
        "min_genes": "A cell is kept if at least so many genes are detected in it.",
        "min_cells": "A gene is kept if it is detected in at least so many of the kept cells.",
    },
    "Scale": {
        "LSN": "Library-size normalisation: each cell's counts are scaled to this total. 20000 in the published file.",
        "fixed_scaling": "Standardisation of each gene where cells enter the network.",
    },
    "FixedScaling": {
        "mean": 'What is subtracted: `"genes"` for each gene\'s own mean, or one number.',
        "var": 'What is divided by, a standard deviation: `"genes"` for each gene\'s own, or one number.',
        "add_to_mean": "Added to the means.",
        "add_to_var": "Added to the standard deviations.",
    },
    "Split": {
        "split_seed": "Seed of the choice of cells.",
        "valid_cells": "Share of each batch that validates (early stopping, best model); 0: all cells are trained on.",
        "mmd_cells": "Share of the validation cells on which a search judges.",
        "balanced_split": "Without effect: shares are always of each batch.",
        "test_cells": "Share of each batch that nothing is learned from; `discern evaluate` compares with it.",
    },
    "Model": {
        "latent_dim": "Dimensions of the latent code.",
        "activation_fn": "Activation of the hidden layers: a Keras name or a dotted one.",
        "output_fn": 'What the count head\'s values pass: null (nothing), `"softmax"`, `"LSN"`, `"sigsoftmax"` or a '
        "Keras activation. The three named ones make log-normalised values and suit cells that are not standardised.",
        "encoder": "Layers from expression to latent code. By default [1024, 512, 256], dropout 0.4.",
        "decoder": "Layers from latent code to expression. By default [256, 512, 1024], no dropout.",
        **{key: f"For encoder and decoder at once. {text}" for key, text in _SIDED.items()},
        "reconstruction_loss": "Loss of the expression, weighted with 15000.",
        "crossentropy": "Loss of the detection probabilities.",
        "wae_lambda": "Weight of MMD++, which draws the latent codes to a normal distribution.",
        "weighting_decoder_dropout": "Weight of the cross entropy.",
        "weighting_random_encoder": "Weight of the regularisation of the encoder's noise.",
        "weighting_batch_mmd": "Weight of MMD between the latent codes of different batches; 0 or absent: none.",
    },
    "Side": _SIDED,
    "Regularizer": {"name": "A Keras regulariser; other keys are its arguments (`l1`, `l2`)."},
    "ReconstructionLoss": {
        "name": "`HuberLoss` (`delta`), `Lnorm` (`p`, `axis`, `epsilon`, `use_root`), or a Keras loss; other keys are "
        "its arguments."
    },
    "Crossentropy": {
        "label_smoothing": "As in Keras.",
        "lower_label_smoothing": "Probability of detection that a zero is taken to have: zeros are often missed genes.",
        "zeros_eps": "How far a standardised value may be from that of a zero and still be one.",
    },
    "Training": {
        "GPU": "Numbers of the GPUs to use, [] for none; by default all. Those that are not there are left out.",
        "XLA": "Whether the training step is compiled.",
        "batch_size": "Cells in a step; never more than there are validation cells or, without any, than a tenth of "
        "the training cells.",
        "max_steps": "Epochs at the most, those before an interruption included.",
        "max_updates": "Updates of the weights at the most: training ends with the epoch in which there have been so "
        "many; by default `max_steps` alone counts.",
        "parallel_pc": "CPU threads; 0 and by default TensorFlow's choice.",
        "early_stopping": "When training stops before `max_steps`.",
        "optimizer": "The optimiser.",
        "precision": '`"mixed_bfloat16"` computes layers in half precision.',
        "distribute": '`"mirrored"` shares each batch among all GPUs of the machine.',
        "visualisation": "Whether UMAP pictures are drawn; by default true.",
        "freq": "Epochs between pictures; by default 30.",
        "seed": "Seed of weights, noise and sampling; by default a fresh one each time.",
        "thin_counts": "Training cells are encoded with a share of their counts, drawn between this and 1 anew each "
        "time, and decoded to all of them; 1 or absent: with all counts.",
    },
    "EarlyStopping": {
        "delay": "Epochs in the beginning that do not count.",
        "min_delta": "Least change that counts as an improvement.",
        "patience": "Epochs without improvement after which training stops.",
        "monitor": 'Figure to watch; by default `"val_loss"`.',
        "verbose": "1 to say when it stops.",
        "mode": "Whether lower or higher is better.",
        "baseline": "Value to beat.",
        "restore_best_weights": "Whether the best epoch's weights are put back at the end.",
        "start_from_epoch": "Keras' name of `delay`.",
    },
    "Optimizer": {
        "algorithm": "A Keras optimiser or `discern.estimators.optimizers.RectifiedAdam`; names of TensorFlow Addons "
        "still work. Other keys are its arguments (`beta_1`, `weight_decay`, `clipnorm`, ...).",
        "learning_rate": "Step size.",
        "learning_decay": "Schedule of the learning rate.",
        "Lookahead": "Whether slow weights follow every 6 steps half the way.",
    },
    "LearningDecay": {"name": "A Keras learning-rate schedule; other keys are its arguments."},
}
"""Class of `discern.config.schema` -> key -> description."""
