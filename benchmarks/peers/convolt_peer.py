"""Convolt through `compile` and `fit`, as a user calls it; the plan decides by itself. `--variant` is a value of `fusions`."""

from common import arguments, run
from keras_like import FitPeer, build

options = arguments()

import convolt  # noqa: E402

asked = {} if options.precision == "default" else {"precision": options.precision}
if options.device == "cpu":  # a row has a minute or two, of which torch.compile, a candidate of long runs, would take the most
    asked["execution"] = "replay"
model = build(convolt, options.work)
model.compile("adam", "sparse_categorical_crossentropy", metrics=["accuracy"] if options.work.task == "target" else None,
              device=options.device, fusions=options.variant or "auto", **asked)
peer = FitPeer(convolt, model, None if options.precision == "default" else options.batch, first_alone=True)
run("convolt", options, peer, ("torch", "numba"), lambda: {"plan": model.plan.describe()} if options.work.task != "predict" else {})
