"""The token classifier against transformers; its folders, read strictly and written back."""

import json
import shutil
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import torch
import transformers

from fedmedjax.data.labels import label_names
from fedmedjax.model.bert import BertTagger, label_loss, split_frozen
from fedmedjax.model.files.bert import load_bert, save_bert
from fedmedjax.types import InputError, LabelBatch

LABELS = label_names(('problem', 'drug'))
WORDS = ('[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', *(f'w{i}' for i in range(35)))
# Head width 8, an inner width unlike 4 times the outer, an epsilon that shows.
SHAPE = dict(
  vocab_size=40, hidden_size=16, intermediate_size=24, num_hidden_layers=3,
  num_attention_heads=2, max_position_embeddings=20, layer_norm_eps=1e-3)
ROWS = np.random.default_rng(0).integers(5, 40, (3, 12))
VALID = np.arange(12)[None] < np.array([12, 7, 3])[:, None]


def save_tokenizer(folder):
  """Only what Bio_ClinicalBERT comes with: vocab.txt."""
  (folder / 'vocab.txt').write_text('\n'.join(WORDS) + '\n')


def scattered(model):
  """Weights away from their small initial values, so that every part matters."""
  torch.manual_seed(7)
  with torch.no_grad():
    for weight in model.parameters():
      weight.add_(torch.randn_like(weight) * 0.2)
  return model.eval()


@pytest.fixture(scope='module')
def classifier(tmp_path_factory):
  """A random BertForTokenClassification with our labels, and its folder."""
  folder = tmp_path_factory.mktemp('classifier')
  model = scattered(transformers.BertForTokenClassification(transformers.BertConfig(
    **SHAPE, id2label=dict(enumerate(LABELS)), label2id={n: i for i, n in enumerate(LABELS)})))
  model.save_pretrained(folder)
  save_tokenizer(folder)
  return model, folder


def theirs(model):
  with torch.no_grad():
    return model(torch.tensor(ROWS), attention_mask=torch.tensor(VALID).long()).logits.numpy()


def ours(bert):
  model = BertTagger(bert.config, len(bert.labels))
  return np.asarray(jax.jit(model.apply)({'params': bert.params}, ROWS, VALID))


def test_logits_are_those_of_transformers_on_a_padded_batch(classifier):
  model, folder = classifier
  found, expected = ours(load_bert(folder, LABELS, 0)), theirs(model)
  # Padded places are nobody's.
  np.testing.assert_allclose(found[VALID], expected[VALID], atol=1e-4, rtol=0)
  assert np.abs(expected[VALID]).max() > 0.3


def test_padding_changes_nothing(classifier):
  bert = load_bert(classifier[1], LABELS, 0)
  model = BertTagger(bert.config, len(LABELS))
  alone = jax.jit(model.apply)({'params': bert.params}, ROWS[1:2, :7], VALID[1:2, :7])
  np.testing.assert_allclose(ours(bert)[1, :7], alone[0], atol=2e-6)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
  """As Bio_ClinicalBERT after conversion: BertForPreTraining, a pooler and heads, vocab.txt."""
  folder = tmp_path_factory.mktemp('pretrained')
  model = scattered(transformers.BertForPreTraining(transformers.BertConfig(**SHAPE)))
  model.save_pretrained(folder)
  save_tokenizer(folder)
  return model, folder


def test_a_pretraining_checkpoint_loads_with_a_fresh_classifier(pretrained):
  model, folder = pretrained
  names = set(safetensors.numpy.load_file(folder / 'model.safetensors'))
  assert any(n.startswith('cls.') for n in names) and 'bert.pooler.dense.weight' in names
  bert = load_bert(folder, LABELS, 3)
  head = bert.params['classifier']
  assert head['kernel'].shape == (16, 5) and not head['bias'].any()
  assert 0.5 * 0.02 < float(head['kernel'].std()) < 1.5 * 0.02
  again, other = load_bert(folder, LABELS, 3), load_bert(folder, LABELS, 4)
  np.testing.assert_array_equal(head['kernel'], again.params['classifier']['kernel'])
  assert (head['kernel'] != other.params['classifier']['kernel']).all()
  # An identity for a classifier shows the encoder's last hidden states.
  model.bert.eval()
  with torch.no_grad():
    expected = model.bert(
      torch.tensor(ROWS), attention_mask=torch.tensor(VALID).long()).last_hidden_state.numpy()
  identity = {'classifier': {'kernel': jnp.eye(16), 'bias': jnp.zeros(16)}}
  found = ours(bert._replace(params=bert.params | identity, labels=LABELS * 3 + LABELS[:1]))
  np.testing.assert_allclose(found[VALID], expected[VALID], atol=1e-4, rtol=0)
  assert bert.tokenizer('w3 w4')['input_ids'] == [2, 8, 9, 3]


def test_old_names_and_bare_names_load_alike(classifier, tmp_path):
  """The first BERT's gamma and beta, a position buffer, and an encoder saved without its head."""
  folder = tmp_path / 'old'
  shutil.copytree(classifier[1], folder)
  tensors = safetensors.numpy.load_file(folder / 'model.safetensors')
  renamed = {
    name.removeprefix('bert.').replace('LayerNorm.weight', 'LayerNorm.gamma')
    .replace('LayerNorm.bias', 'LayerNorm.beta'): value for name, value in tensors.items()}
  renamed['embeddings.position_ids'] = np.arange(20)[None]
  assert sum(name.endswith('gamma') for name in renamed) == 7
  safetensors.numpy.save_file(renamed, folder / 'model.safetensors')
  np.testing.assert_array_equal(
    ours(load_bert(folder, LABELS, 0)), ours(load_bert(classifier[1], LABELS, 0)))


def test_a_saved_head_of_other_labels_is_not_taken(classifier):
  """Same number of rows, other names; and another number of rows."""
  swapped = label_names(('drug', 'problem'))
  saved = np.asarray(load_bert(classifier[1], LABELS, 0).params['classifier']['kernel'])
  fresh = np.asarray(load_bert(classifier[1], swapped, 0).params['classifier']['kernel'])
  assert fresh.shape == saved.shape and np.abs(fresh - saved).min() > 0
  assert load_bert(classifier[1], LABELS[:3], 0).params['classifier']['kernel'].shape == (16, 3)


def test_what_is_saved_transformers_loads_with_equal_logits(pretrained, tmp_path):
  bert = load_bert(pretrained[1], LABELS, 0)
  adapter, _ = split_frozen(bert.params)
  trained = jax.tree.map(lambda x: x * 1.5 + 0.01, adapter)
  save_bert(bert, trained, tmp_path)
  model = transformers.AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
  assert [model.config.id2label[i] for i in range(5)] == list(LABELS)
  again = load_bert(tmp_path, LABELS, 9)
  np.testing.assert_allclose(ours(again)[VALID], theirs(model)[VALID], atol=1e-4, rtol=0)
  np.testing.assert_array_equal(
    ours(again), ours(bert._replace(params={**bert.params, **trained})))
  tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
  assert tokenizer('w3 w4')['input_ids'] == [2, 8, 9, 3]


def test_the_loss_is_over_the_sites_own_labels(classifier):
  """A site that annotates drugs only: the softmax runs over O, B-drug, I-drug.

  With a zero classifier each allowed label has probability 1/3: 3 labelled words cost 3 log 3,
  whatever the other two labels' biases are, and these get no gradient.
  """
  bert = load_bert(classifier[1], LABELS, 0)
  model = BertTagger(bert.config, 5)
  bias = jnp.array([0.0, 9.0, 9.0, 0.0, 0.0])
  adapter, base = split_frozen(
    bert.params | {'classifier': {'kernel': jnp.zeros((16, 5)), 'bias': bias}})
  weight = np.zeros((3, 12), np.float32)
  weight[0, [1, 4]], weight[1, 2] = 1.0, 1.0
  labels = np.zeros((3, 12), np.int32)
  labels[0, 4] = 3
  allowed = np.array([True, False, False, True, True])
  batch = LabelBatch(ROWS, VALID, labels, weight, allowed)
  (total, count), grad = jax.jit(jax.value_and_grad(
    lambda adapter: label_loss(model, adapter, base, batch), has_aux=True))(adapter)
  assert float(total) == pytest.approx(3 * np.log(3), rel=1e-5) and count == 3
  bias = np.asarray(grad['classifier']['bias'])
  # d/d bias of -log p, summed: 3 * 1/3 less the number of words with that label (2 O, 1 B-drug).
  np.testing.assert_allclose(bias, [-1, 0, 0, 0, 1], atol=1e-5)
  assert all(np.isfinite(x).all() for x in jax.tree.leaves(grad))


def test_remat_changes_no_gradient(classifier):
  bert = load_bert(classifier[1], LABELS, 0)
  adapter, base = split_frozen(bert.params)
  weight = VALID.astype(np.float32)
  batch = LabelBatch(ROWS, VALID, ROWS % 5, weight, np.ones(5, bool))

  def gradient(remat):
    model = BertTagger(bert.config, 5, remat)
    return jax.jit(jax.grad(lambda adapter: label_loss(model, adapter, base, batch)[0]))(adapter)

  kept = gradient('none')
  for remat in ('products', 'narrow_products', 'full'):
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), gradient(remat), kept)


def edit(folder, **changes):
  path = folder / 'config.json'
  path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def tensors(folder, change):
  path = folder / 'model.safetensors'
  held = safetensors.numpy.load_file(path)
  change(held)
  safetensors.numpy.save_file(held, path)


QUERY = 'bert.encoder.layer.1.attention.self.query.weight'


@pytest.mark.parametrize('break_it, message', [
  (lambda f: (f / 'config.json').write_text('{'), 'config.json: cannot be read'),
  (lambda f: edit(f, model_type='roberta'), "'roberta': 'bert' is supported"),
  (lambda f: edit(f, hidden_act='relu'), "hidden_act='relu': 'gelu' is supported"),
  (lambda f: edit(f, position_embedding_type='relative_key'), "'relative_key'"),
  (lambda f: edit(f, is_decoder=True), 'is_decoder=True'),
  (lambda f: edit(f, num_attention_heads=3), 'a multiple of num_attention_heads=3'),
  (lambda f: edit(f, vocab_size=None), 'not a BERT configuration'),
  (lambda f: edit(f, intermediate_size=32), r'has shape \(24,\), expected \(32,\)'),
  (lambda f: edit(f, num_hidden_layers=2), "unknown tensor 'bert.encoder.layer.2"),
  (lambda f: edit(f, num_hidden_layers=4), 'tensors are missing, first .encoder.layer.3'),
  (lambda f: tensors(f, lambda t: t.pop(QUERY)), '1 tensors are missing'),
  (lambda f: tensors(f, lambda t: t.update(extra=t[QUERY])), "unknown tensor 'extra'"),
  (lambda f: tensors(f, lambda t: t.update({QUERY[5:]: t[QUERY]})), 'occurs twice'),
  (lambda f: (f / 'model.safetensors').write_bytes(b'\xff' * 64), 'damaged safetensors'),
  (lambda f: (f / 'model.safetensors').unlink(), r'no \*.safetensors file'),
  (lambda f: (f / 'model.safetensors').rename(f / 'pytorch_model.bin'),
   'is a pickle and is not read.*from_pretrained'),
  (lambda f: (f / 'vocab.txt').write_text('\n'.join((*WORDS, 'more'))), 'has 41 tokens'),
  (lambda f: (f / 'vocab.txt').unlink(), 'neither tokenizer.json nor vocab.txt'),
])
def test_a_broken_folder(classifier, tmp_path, break_it, message):
  folder = tmp_path / 'model'
  shutil.copytree(classifier[1], folder)
  break_it(folder)
  with pytest.raises(InputError, match=message) as error:
    load_bert(folder, LABELS, 0)
  assert '\n' not in str(error.value)


def test_no_folder():
  with pytest.raises(InputError, match="config.bert.path='/nowhere'"):
    load_bert('/nowhere', LABELS, 0)
