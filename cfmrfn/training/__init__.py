"""Parts of a training run, which `cfmrfn.train` puts together: a step, and what a run keeps."""
