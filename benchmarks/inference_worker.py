"""One engine in a process of its own, which generates when it is asked to: one line of JSON in, one line out.

    python benchmarks/inference_worker.py ENGINE FOLDER THREADS

Nothing is imported that the engine does not need, so that the memory of this process is the engine's. The first line
out tells seconds to load and the resident memory, MB, after the imports and after loading. A line in has ``texts``,
``source``, ``beams`` and ``tokens``; the line out ``seconds`` of that generation, and memory after it. All texts get
exactly ``tokens`` tokens; of a classifier, which writes none, it is the seconds of its logits. Where ``parts`` are
asked for, the line of ONNX Runtime also has the seconds of ``encoder``, ``decoder``, ``head`` and ``Python``, whose sum
is ``seconds``.
"""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

Generate = Callable[[list[list[int]], int, int], Any]


def resident() -> float:
    """Memory of this process that is in RAM, MB (10^6 bytes); the largest ever where there is no /proc."""
    status = Path("/proc/self/status")
    if status.is_file():
        kilobytes = next(line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        return int(kilobytes) * 1024 / 1e6
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / 1e6 if sys.platform == "darwin" else largest * 1024 / 1e6


def transformers_engine(folder: Path, threads: int) -> Generate:
    """Transformers in full precision."""
    import torch

    torch.set_num_threads(threads)
    import transformers

    name = json.loads((folder / "config.json").read_text())["architectures"][0]
    model = getattr(transformers, name).from_pretrained(folder).eval()

    def generate(ids: list[list[int]], beams: int, tokens: int) -> Any:
        source = torch.tensor(ids)
        if not tokens:
            with torch.no_grad():
                return model(input_ids=source, attention_mask=torch.ones_like(source))
        return model.generate(
            input_ids=source,
            attention_mask=torch.ones_like(source),
            num_beams=beams,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
        )

    return generate


def ctranslate2_engine(folder: Path, threads: int) -> Generate:
    """CTranslate2 itself, without what dqlib puts around it."""
    import ctranslate2

    if (folder / "classifier.safetensors").is_file():
        return _ctranslate2_classifier(folder, threads)
    shared = folder / "shared_vocabulary.json"  # of source and target, which a decoder alone has not
    how = {"inter_threads": 1, "intra_threads": threads}
    if not shared.is_file():
        generator = ctranslate2.Generator(str(folder), **how)
        names = json.loads((folder / "vocabulary.json").read_text(encoding="utf-8"))
        return lambda ids, beams, tokens: generator.generate_batch(
            [[names[i] for i in row] for row in ids], beam_size=beams, min_length=tokens, max_length=tokens,
            include_prompt_in_result=False,
        )  # fmt: skip
    translator = ctranslate2.Translator(str(folder), **how)
    vocabulary = json.loads(shared.read_text(encoding="utf-8"))
    return lambda ids, beams, tokens: translator.translate_batch(
        [[vocabulary[i] for i in row] for row in ids], [[vocabulary[2]]] * len(ids), beam_size=beams,
        min_decoding_length=tokens, max_decoding_length=tokens, max_input_length=0,
    )  # fmt: skip


def _ctranslate2_classifier(folder: Path, threads: int) -> Generate:
    import ctranslate2
    import numpy as np
    import safetensors.numpy

    encoder = ctranslate2.Encoder(str(folder), inter_threads=1, intra_threads=threads)
    head = safetensors.numpy.load_file(folder / "classifier.safetensors")

    def classify(ids: list[list[int]], beams: int, tokens: int) -> Any:
        output = encoder.forward_batch(ids, token_type_ids=[[0] * len(row) for row in ids])
        return np.array(output.pooler_output) @ head["weight"].T + head["bias"]

    return classify


def onnxruntime_engine(folder: Path, threads: int) -> Generate:
    """The engine of dqlib."""
    from dqlib.engines.onnx_model import CLASSIFIER, OnnxClassifier, OnnxEngine

    if (folder / CLASSIFIER).is_file():
        classifier = OnnxClassifier(folder, threads)
        return lambda ids, beams, tokens: classifier.logits_of_ids(ids)
    engine = OnnxEngine(folder, threads)

    def generate(ids: list[list[int]], beams: int, tokens: int) -> Any:
        engine.decoding = replace(engine.decoding, min_new_tokens=tokens)
        return engine.generate_ids(ids, num_beams=beams, max_new_tokens=tokens)

    generate.parts = partial(onnx_parts, engine)  # type: ignore[attr-defined]
    return generate


class Timed:
    """A session of ONNX Runtime whose runs are timed.

    Args:
        session: that is run.
        after: is called after each run, outside its time.
    """

    def __init__(self, session: Any, after: Callable[[], object] = bool) -> None:
        self._session, self._after, self.seconds = session, after, 0.0

    def run_with_iobinding(self, binding: Any) -> None:
        """Run it."""
        start = time.perf_counter()
        self._session.run_with_iobinding(binding)
        self.seconds += time.perf_counter() - start
        self._after()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


def onnx_parts(engine: Any, ids: list[list[int]], beams: int, tokens: int, generate: Generate) -> dict[str, float]:
    """Seconds of the parts of a generation.

    The head is a part of the decoder's graph. To tell its time, it is run once more, alone, after each step, when the
    decoder's weights have passed through the caches as they have in the graph; what that takes counts nowhere else.
    """
    head, rows = Head(engine), len(ids) * beams
    whole, own, decoder = engine._encoders, engine._decoder, Timed(engine._decoder, lambda: head.run(rows))
    encoder = Timed(whole[0])
    engine._encoders, engine._decoder = [encoder], decoder
    start = time.perf_counter()
    try:
        generate(ids, beams, tokens)
    finally:
        engine._encoders, engine._decoder = whole, own
    seconds = time.perf_counter() - start - head.seconds
    parts = {"encoder": encoder.seconds, "decoder": decoder.seconds - head.run_seconds, "head": head.run_seconds}
    return {"seconds": seconds, "Python": seconds - encoder.seconds - decoder.seconds} | parts


class Head:
    """The end of a decoder's graph, from the last states to logits, as a graph of its own.

    Attributes:
        seconds: that were spent here, of which ``run_seconds`` in the graph.
    """

    def __init__(self, engine: Any) -> None:
        import numpy as np
        import onnx
        import onnxruntime

        model = onnx.load(engine.folder / "decoder.onnx")
        graph, nodes = model.graph, list(model.graph.node)
        # the last states get the shape (rows, features), and the rest of the graph is the head
        last = max(i for i, node in enumerate(nodes) if node.op_type == "Reshape")
        states, width = nodes[last].output[0], engine._description["heads"] * engine._description["head_dim"]
        del graph.node[: last + 1]
        used = {name for node in graph.node for name in node.input}
        for field, kept in (("initializer", used), ("output", {"logits"}), ("input", {})):
            values = [each for each in getattr(graph, field) if each.name in kept]
            del getattr(graph, field)[:]
            getattr(graph, field).extend(values)
        graph.input.append(onnx.helper.make_tensor_value_info(states, onnx.TensorProto.FLOAT, ["rows", width]))
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = engine._decoder.get_session_options().intra_op_num_threads
        self._session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        self._states, self._width, self._random = states, width, np.random.default_rng(0)
        self.seconds = self.run_seconds = 0.0

    def run(self, rows: int) -> None:
        """Compute logits of random states."""
        start = time.perf_counter()
        states = self._random.standard_normal((rows, self._width), "float32")
        began = time.perf_counter()
        self._session.run(None, {self._states: states})
        end = time.perf_counter()
        self.run_seconds += end - began
        self.seconds += end - start


ENGINES = {
    "transformers": (transformers_engine, ("transformers.models.bart.modeling_bart",)),
    "ctranslate2": (ctranslate2_engine, ("ctranslate2",)),
    "onnxruntime": (onnxruntime_engine, ("dqlib.engines.onnx_model",)),
}


def main() -> None:
    """Load, then generate until the input ends."""
    engine, folder, threads = sys.argv[1:]
    load, needed = ENGINES[engine]
    for name in needed:
        __import__(name)
    imported, start = resident(), time.perf_counter()
    generate = load(Path(folder), int(threads))
    report = {"load": time.perf_counter() - start, "imported": imported, "loaded": resident()}
    print(json.dumps(report), flush=True)
    vocabulary = json.loads((Path(folder).parent / "vocabulary.json").read_text())
    for line in sys.stdin:
        request, draw = json.loads(line), random.Random(0)
        ids = [
            [draw.randrange(5, vocabulary) for _ in range(request["source"] - 1)] + [2] for _ in range(request["texts"])
        ]
        asked, parts = (ids, request["beams"], request["tokens"]), getattr(generate, "parts", None)
        if request.get("parts") and parts is not None:
            answer = parts(*asked, generate)
        else:
            start = time.perf_counter()
            generate(*asked)
            answer = {"seconds": time.perf_counter() - start}
        print(json.dumps(answer | {"resident": resident()}), flush=True)


if __name__ == "__main__":
    main()
