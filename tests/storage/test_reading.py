"""A model is all of its folder's tensors and no others, by known settings alone; else an error names what is wrong."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BartForConditionalGeneration, GenerationConfig

from dqlib.config import Config
from dqlib.engines.torch_engine import TorchEngine, load_model
from dqlib.errors import InputError
from dqlib.storage.manifest import MANIFEST
from dqlib.storage.packed import load_packed, save_packed
from dqlib.storage.reading import generation_of, read_model, save_model
from dqlib.storage.students import load_student, save_student
from dqlib.student import make_student, round_for_storage
from tests.helpers.folders import reconfigure, reseal, reweigh
from tests.helpers.models import CASES, data_of, make_teacher, student_of

FC1 = "model.encoder.layers.0.fc1.weight"
BIAS = "model.decoder.layers.0.self_attn_layer_norm.bias"


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A folder of each kind, of one model; ``teacher`` is what transformers itself writes."""
    root, teacher = tmp_path_factory.mktemp("written"), make_teacher("bart")
    teacher.save_pretrained(root / "teacher")
    save_model(teacher, root / "model")
    student = student_of(teacher, "bart")
    round_for_storage(student)
    save_student(student, root / "student")
    save_packed(student, root / "packed")
    return root


@pytest.fixture
def folders(written, tmp_path):
    shutil.copytree(written, tmp_path / "written")
    return tmp_path / "written"


READERS = {"teacher": read_model, "model": read_model, "student": load_student, "packed": load_packed}
OF_WEIGHTS = ("teacher", "model", "student")


@pytest.mark.parametrize("name", CASES)
def test_a_model_is_read_as_transformers_reads_it(name, tmp_path):
    teacher, data = make_teacher(name), data_of(name)
    save_model(teacher, tmp_path)
    ours, theirs = read_model(tmp_path), type(teacher).from_pretrained(tmp_path)
    assert type(ours) is type(theirs)
    assert ours.config.to_dict() == theirs.config.to_dict()
    assert all(torch.equal(value, theirs.state_dict()[key]) for key, value in ours.state_dict().items())
    with torch.no_grad():
        assert torch.equal(ours(**data.inputs).logits, theirs(**data.inputs).logits)
    if ours.can_generate():
        assert ours.generation_config.to_dict() == theirs.generation_config.to_dict()


def test_what_older_versions_of_a_checkpoint_lack_or_have_is_no_error(tmp_path):
    # facebook/bart-base: the names of the bare model, no bias of the logits, a version that nobody needs.
    teacher = make_teacher("bart")
    teacher.save_pretrained(tmp_path)
    tensors = {name.removeprefix("model."): value for name, value in load_file(tmp_path / "model.safetensors").items()}
    del tensors["final_logits_bias"]
    tensors["encoder.version"] = torch.ones(1)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    read = read_model(tmp_path, "seq2seq")
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in read.state_dict().items())


DAMAGES = {
    "missing": (lambda t: t.pop(FC1), rf"^{FC1}: 'missing'"),
    "missing bias": (lambda t: t.pop(BIAS), rf"^{BIAS}: 'missing'"),
    "renamed": (lambda t: t.update(other=t.pop(FC1)), rf"^{FC1}: 'missing'"),
    "extra": (lambda t: t.update(other=torch.ones(3)), r"^other: 'in the weights'"),
    "extra layer": (
        lambda t: t.update({FC1.replace(".0.", ".7."): t[FC1].clone()}), r"layers\.7\.fc1\.weight: 'in the weights'"
    ),
    "misshapen": (lambda t: t.update({FC1: t[FC1][:-1].clone()}), rf"^{FC1}: \(23, 16\) .* \(24, 16\)"),
    "nan": (lambda t: t[FC1].__setitem__((3, 4), torch.nan), "nan or inf"),
    "inf": (lambda t: t[BIAS].__setitem__(2, -torch.inf), rf"^{BIAS}: 'nan or inf'"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OF_WEIGHTS)
def test_a_tensor_that_is_missing_renamed_left_over_misshapen_or_no_number_is_refused(folders, kind):
    folder, damages = folders / kind, DAMAGES
    if kind == "student":  # of which nothing may be missing, not even what older checkpoints lack
        bias = "final_logits_bias"
        damages = DAMAGES | {"missing bias of logits": (lambda t: t.pop(bias), rf"^{bias}: 'missing'")}
    whole = {path: path.read_bytes() for path in folder.iterdir()}
    for change, message in damages.values():
        reweigh(folder, change)
        with pytest.raises(InputError, match=message):
            READERS[kind](folder)
        for path, data in whole.items():
            path.write_bytes(data)


@pytest.mark.parametrize(("kind", "layers"), [("teacher", 1), ("model", 4), ("student", 1), ("student", 4)])
def test_a_depth_that_disagrees_with_the_weights_is_refused(folders, kind, layers):
    reconfigure(folders / kind, encoder_layers=layers, num_hidden_layers=layers)
    with pytest.raises(InputError, match=r"^model\.encoder\.layers\.\d\.\S+: '(missing|in the weights)'"):
        READERS[kind](folders / kind)


@pytest.mark.parametrize("kind", ["student", "packed"])
def test_a_depth_that_disagrees_with_the_configuration_of_the_student_is_refused(folders, kind):
    about = json.loads((folders / kind / MANIFEST).read_text())["about"]
    reseal(folders / kind, about=about | {"config": "2-2-8 2-2"})
    with pytest.raises(InputError, match=r"^config: '2-2-8 2-2' .* 2-1 layers"):
        READERS[kind](folders / kind)


@pytest.mark.parametrize(
    "scale", ["decoder.layers.0.fc1.weight.scale", "decoder.layers.0.fc1.bias", "encoder.layernorm_embedding.weight"]
)
def test_a_number_of_a_packed_model_that_is_none_is_refused_by_name(folders, scale):
    for number in (torch.nan, torch.inf):

        def change(tensors, number=number):
            tensors[f"model.{scale}"].view(-1)[-1] = number

        reweigh(folders / "packed", change, "packed.safetensors")
        with pytest.raises(InputError, match=rf"^model\.{scale}: 'nan or inf'"):
            load_packed(folders / "packed")


# --- configurations


@pytest.mark.parametrize("kind", READERS)
def test_no_configuration_names_code_or_a_repository(folders, kind):
    weights = read = READERS[kind](folders / kind)
    reconfigure(
        folders / kind,
        attn_implementation="kernels-community/flash-attn3",
        _attn_implementation="kernels-community/flash-attn3",
        _experts_implementation="kernels-community/experts",
        auto_map={"AutoConfig": "somebody/else--modeling.Config", "AutoModel": "somebody/else--modeling.Model"},
        custom_generate="somebody/else",
        _name_or_path="somebody/else",
        fusion_config={"mlp": True},
        per_layer_config={"0": {"activation_function": "relu"}},
        return_dict=False,
        output_attentions=True,
    )
    read = READERS[kind](folders / kind)
    assert read.config.to_dict() == weights.config.to_dict()
    assert read.config._attn_implementation == weights.config._attn_implementation
    assert read.config.name_or_path in ("", str(folders / kind))
    reconfigure(folders / kind, quantization_config={"quant_method": "torchao", "load_in_8bit": True})
    with pytest.raises(InputError, match=r"config\.json, quantization_config: .* left out"):
        READERS[kind](folders / kind)


def refuses(folder, kind, name, fields, message):
    """A folder with other fields in a file is refused in one sentence, and then is as it was."""
    whole = {path: path.read_bytes() for path in (folder / name, folder / MANIFEST) if path.is_file()}
    reconfigure(folder, name, **fields)
    with pytest.raises(InputError, match=message) as caught:
        READERS[kind](folder)
    assert "\n" not in str(caught.value)
    for path, data in whole.items():
        path.write_bytes(data)


@pytest.mark.parametrize("kind", READERS)
def test_a_configuration_that_the_weights_do_not_bear_out_is_refused(folders, kind):
    for fields, message in (
        ({"num_labels": 10**8}, "num_labels: 100000000 .* from 1 to 60"),
        ({"num_labels": "many"}, "num_labels: 'many'"),
        ({"vocab_size": 10**12}, r"\(60, 16\) .*1000000000000|1000000000000"),
        ({"encoder_layers": 10**9, "num_hidden_layers": 10**9}, "layers' .* no more layers than"),
        ({"vocab_size": 10**30}, r"config\.json: "),
        ({"max_position_embeddings": 10**12}, r"10000000000\d\d"),
        *(({"d_model": width}, "config") for width in (-16, 15, "wide")),
        *(({"model_type": kind}, r"config\.json, model_type: ") for kind in (["bart"], "llama")),
        ({"encoder_attention_heads": 0, "num_attention_heads": 0}, "config"),
        ({"activation_function": "os.system"}, r"os\.system"),
        ({"activation_dropout": 3}, "activation_dropout: 3 .* a probability"),
        ({"activation_dropout": None}, "activation_dropout: None .* a probability"),
        ({"dtype": "load"}, "dtype: 'load' .* float32"),
        ({"pad_token_id": 60}, "pad_token_id: 60 .* vocabulary"),
        ({"decoder_start_token_id": -1}, "decoder_start_token_id: -1 .* vocabulary"),
        ({"architectures": {"a": 1}}, "architectures: .* a list of names"),
    ):
        refuses(folders / kind, kind, "config.json", fields, message)


@pytest.mark.skipif(not Path("/proc/self/statm").is_file(), reason="does not tell its memory")
def test_a_size_that_a_file_claims_takes_no_memory(folders):
    import resource  # POSIX alone has it

    for kind in READERS:
        reconfigure(folders / kind, num_labels=10**8)
    make_teacher("marian").save_pretrained(folders / "marian")  # whose positions are computed, and in no file
    reconfigure(folders / "marian", max_position_embeddings=10**9)
    used, before = Path("/proc/self/statm").read_text().split()[0], resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (int(used) * resource.getpagesize() + 400_000_000, before[1]))
    try:
        for kind in (*READERS, "marian"):
            with pytest.raises(InputError):
                load_model(folders / kind)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_settings_of_a_generation_are_known_and_in_range(folders):
    for kind in READERS:
        message = r"generation_config\.json, num_beam_groups: 2 .* left out"
        refuses(folders / kind, kind, "generation_config.json", {"num_beam_groups": 2}, message)
    for settings, message in (
        ({"stop_strings": ["the"]}, r"stop_strings: \['the'\] .* left out"),
        ({"penalty_alpha": 0.6}, r"penalty_alpha: 0\.6 .* left out"),
        ({"watermarking_config": {"bias": 2.0}}, "watermarking_config: .* left out"),
        ({"assistant": "somebody/else"}, "assistant: 'somebody/else' .* left out"),
        ({"eos_token_id": 60}, "eos_token_id: 60 .* vocabulary"),
        ({"eos_token_id": [2, -1]}, r"eos_token_id: \[2, -1\] .* vocabulary"),
        ({"forced_bos_token_id": 10**9}, "forced_bos_token_id: 1000000000 .* vocabulary"),
        ({"bad_words_ids": [[]]}, "bad_words_ids: "),
        ({"bad_words_ids": [[99]]}, "bad_words_ids: "),
        ({"suppress_tokens": "all"}, "suppress_tokens: 'all'"),
        ({"num_beams": 10**9}, "num_beams: 1000000000 .* from 1 to 1024"),
        ({"num_beams": True}, "num_beams: True"),
        ({"max_length": "long"}, "max_length: 'long'"),
        ({"length_penalty": "nan"}, "length_penalty: 'nan'"),
        ({"length_penalty": 10.5}, r"length_penalty: 10\.5 .* a number from -10 to 10"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty: 0\.0"),
        ({"temperature": float("nan")}, "temperature: nan"),
        ({"early_stopping": "sometimes"}, "early_stopping: 'sometimes'"),
        ({"exponential_decay_length_penalty": [1]}, "exponential_decay_length_penalty: "),
    ):
        with pytest.raises(InputError, match=rf"^where, {message}"):
            generation_of(settings, CASES["bart"].config, "where")


@pytest.mark.parametrize("kind", READERS)
def test_a_setting_that_changes_the_form_of_an_answer_changes_nothing(folders, kind):
    before = TorchEngine(READERS[kind](folders / kind)).generate_ids([[5, 6, 2]], num_beams=2, max_new_tokens=4)
    form = {"return_dict_in_generate": True, "output_scores": True, "output_attentions": True}
    reconfigure(folders / kind, "generation_config.json", **form)
    read = READERS[kind](folders / kind)
    assert TorchEngine(read).generate_ids([[5, 6, 2]], num_beams=2, max_new_tokens=4) == before


def test_settings_of_real_checkpoints_are_read_as_they_are(folders):
    cnn = {  # facebook/bart-large-cnn, with ids of ours
        "_from_model_config": True, "bos_token_id": 0, "decoder_start_token_id": 2, "early_stopping": True,
        "eos_token_id": 2, "forced_bos_token_id": 0, "forced_eos_token_id": 2, "length_penalty": 2.0,
        "max_length": 142, "min_length": 56, "no_repeat_ngram_size": 3, "num_beams": 4, "pad_token_id": 1,
        "transformers_version": "4.27.0.dev0",
    }  # fmt: skip
    for name in ("generation_config.json", "config.json"):  # where they stood before there was a file for them
        (folders / "teacher" / "generation_config.json").unlink()
        if name == "config.json":
            reconfigure(folders / "teacher", **{key: value for key, value in cnn.items() if key[0] != "_"})
        else:
            (folders / "teacher" / name).write_text(json.dumps(cnn))
        read = read_model(folders / "teacher").generation_config
        assert all(getattr(read, key) == value for key, value in cnn.items() if key[0] != "_" and "version" not in key)
        (folders / "teacher" / "generation_config.json").touch()


def test_a_student_whose_settings_could_not_be_read_again_is_not_made(tmp_path):
    teacher = make_teacher("bart")
    teacher.generation_config = GenerationConfig(stop_strings=["the"])
    with pytest.raises(InputError, match=r"^generation_config, stop_strings: "):
        make_student(teacher, Config.parse("2-2-8 2-1"))


def test_weights_in_several_files_are_read_from_their_folder_alone(folders):
    teacher = BartForConditionalGeneration.from_pretrained(folders / "teacher")
    teacher.save_pretrained(folders / "many", max_shard_size="20KB")
    read = read_model(folders / "many")
    assert all(torch.equal(value, teacher.state_dict()[name]) for name, value in read.state_dict().items())
    index = folders / "many" / "model.safetensors.index.json"
    first = min((folders / "many").glob("model-*"))
    index.write_text(index.read_text().replace(first.name, f"../{first.name}"))
    with pytest.raises(InputError, match=r"index\.json: '\.\./model-\S+' .* plain name"):
        read_model(folders / "many")
    index.write_text(index.read_text().replace("../", ""))
    first.unlink()
    with pytest.raises(InputError, match="whole files of weights"):
        read_model(folders / "many")


def test_a_student_in_place_of_another_leaves_nothing_that_could_be_read_for_it(folders):
    first, second = load_student(folders / "student"), student_of(make_teacher("bart"), "bart", "8-8-8").eval()
    second.save_pretrained(folders / "student", max_shard_size="20KB")  # in several files, where one was
    assert not (folders / "student" / "model.safetensors").exists()
    with torch.no_grad():
        theirs = second(**data_of("bart").inputs).logits
        assert torch.equal(load_student(folders / "student")(**data_of("bart").inputs).logits, theirs)
    first.save_pretrained(folders / "other")
    shutil.copy(folders / "other" / "model.safetensors", folders / "student")
    with pytest.raises(InputError, match=r"^model\.safetensors: .* named by dqlib\.json, or not be there"):
        load_student(folders / "student")
