"""Examples as dialogues: token by token what the model's own chat template gives."""

import copy
from types import SimpleNamespace

import pytest
import tokenizers

from fedmedjax.data import chat
from fedmedjax.data.site import encode_site
from fedmedjax.data.tasks import INPUT_HEADING, ask
from fedmedjax.eval.prompt import Prompt, messages
from fedmedjax.types import Document, Example, InputError, SiteCorpus, Span

# In the manner of four families. The first tells the date, the second may think, the third has what
# the system says in the user's turn, the fourth refuses it; the first and the last remove blanks.
TEMPLATES = {
  'llama3': (
    '<|begin|>{% for m in messages %}<|head|>{{ m["role"] }}<|text|>\n\n'
    '{% if m["role"] == "system" %}Today: {{ date_string if date_string is defined else '
    'strftime_now("%d %b %Y") }}\n\n{% endif %}{{ m["content"] | trim }}<|eot|>{% endfor %}'
    '{% if add_generation_prompt %}<|head|>assistant<|text|>\n\n{% endif %}'),
  'qwen3': (
    '{% for m in messages %}<|head|>{{ m["role"] }}\n'
    '{% if m["role"] == "assistant" and loop.last %}<think>\n\n</think>\n\n{% endif %}'
    '{{ m["content"] }}<|eot|>\n{% endfor %}{% if add_generation_prompt %}<|head|>assistant\n'
    '{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}'
    '{% endif %}'),
  'mistral': (
    '<|begin|>{% if messages[0]["role"] == "system" %}'
    '{% set says = messages[0]["content"] + "\n\n" %}{% set rest = messages[1:] %}{% else %}'
    '{% set says = "" %}{% set rest = messages %}'
    '{% endif %}{% for m in rest %}{% if m["role"] == "user" %}<|head|> '
    '{{ says if loop.first else "" }}{{ m["content"] }}<|text|>'
    '{% else %} {{ m["content"] }}<|eot|>{% endif %}{% endfor %}'),
  'gemma': (
    '<|begin|>{% if messages[0]["role"] == "system" %}{{ raise_exception("no system turn") }}'
    '{% endif %}{% for m in messages %}<|head|>{{ m["role"] }}\n{{ m["content"] | trim }}<|eot|>\n'
    '{% endfor %}{% if add_generation_prompt %}<|head|>model\n{% endif %}').replace(
      '{{ m["role"] }}', '{{ "model" if m["role"] == "assistant" else m["role"] }}'),
}
CORPUS = SiteCorpus('ward', ('problem',), (
  Document('a', 'No fever.', (Span(3, 8, 'problem'),), ()),
  Document('b', ' No chest pain today ', (Span(4, 14, 'problem'),), ())), (
  Document('c', 'No cough', (Span(3, 8, 'problem'),), ()),), {})
PINNED = {'date_string': '26 Jul 2024', 'enable_thinking': False}


@pytest.fixture(scope='module')
def tokenizer(smollm):
  """tokenizer(name): SmolLM2's with its own template, or with one of the above."""
  def made(name: str, template: str = ''):
    if name == 'smollm2':
      return smollm.tokenizer
    made = copy.deepcopy(smollm.tokenizer)
    made.add_special_tokens({
      'additional_special_tokens': ['<|begin|>', '<|head|>', '<|text|>', '<|eot|>']})
    made.chat_template = template or TEMPLATES[name]
    if name in ('llama3', 'qwen3'):  # theirs join line ends, whatever follows
      steps = tokenizers.pre_tokenizers
      made.backend_tokenizer.pre_tokenizer = steps.Sequence([
        steps.Split(tokenizers.Regex(r'\s*[\r\n]+|[^\S\r\n]?[^\s]+|\s+'), 'isolated'),
        steps.ByteLevel(add_prefix_space=False, use_regex=False)])
    return made

  return made


def whole(tokenizer, *said: tuple[str, str], **more) -> list[int]:
  return list(tokenizer.apply_chat_template(
    [{'role': role, 'content': text} for role, text in said], **PINNED, **more)['input_ids'])


@pytest.mark.parametrize('name, system, end', [
  ('smollm2', True, '<|im_end|>'), ('llama3', True, '<|eot|>'), ('qwen3', True, '<|eot|>'),
  ('mistral', True, '<|eot|>'), ('gemma', False, '<|eot|>')])
def test_an_example_has_the_tokens_of_the_whole_dialogue(tokenizer, name, system, end):
  """Of training and of test; what a decoder is fed is the dialogue up to where an answer begins."""
  own = tokenizer(name)
  (part,) = encode_site(CORPUS, own, max_length=400, chat=True).tasks
  asked = ask('ner', CORPUS)
  head = asked.instruction.removesuffix(INPUT_HEADING).strip()
  for example, tokens in (*zip(part.solved, part.train, strict=True),
                          *zip(part.test, part.test_tokens, strict=True)):
    question = f'### Input Text:\n{example.text}\n### Output Text:'
    said = [('system', head), ('user', question)] if system else [('user', f'{head}\n{question}')]
    answer = asked.render(example)[1].strip()
    expected = whole(own, *said, ('assistant', answer))
    assert [*part.instruction[:-1], *tokens.tokens] == expected
    fed = [*part.instruction[:-1], *tokens.tokens[:tokens.prompt_length]]
    assert fed == whole(own, *said, add_generation_prompt=True)
    assert own.decode(tokens.tokens[tokens.prompt_length:]).strip() == f'{answer}{end}'
  encoder = chat.make_encoder(own, True)
  assert [own.decode([token]) for token in encoder.ends] == [end]
  assert encoder.read(' <b>\n') == '<b>'
  assert chat.make_encoder(own, False).read(' <b>\n') == ' <b>\n'
  # All begin with "No", and go on with other tokens.
  longest = own.decode(part.instruction)
  assert longest.endswith('### Input Text:\nNo') and longest.count('### Input Text:') == 1


def test_the_instruction_is_the_longest_common_run(tokenizer):
  """Of a single question up to its last token; of new notes it is their own."""
  encoder = chat.make_encoder(tokenizer('smollm2'), True)
  asked = ask('ner', CORPUS)
  one, other = (Example('a', 0, text, ()) for text in ('No fever.', 'Pain.'))
  alone = encoder.instruction(asked, [one])
  (tokens,) = encoder.encode(asked, alone, [one])
  assert tokens.prompt_length == 1 and tokens.tokens[0] == alone[-1]
  both, nobody = encoder.instruction(asked, [one, other]), encoder.instruction(asked, [])
  # What all questions begin with counts as part of them, where an answer's length goes by theirs.
  assert encoder.within(asked, alone) == len(alone) - len(nobody) > 0
  assert encoder.within(asked, both) == 0
  assert both.tolist() == nobody.tolist() == alone[:len(both)].tolist() and len(both) < len(alone)
  assert not encoder.encode(asked, both, [])
  plain = chat.make_encoder(tokenizer('smollm2'), False)
  assert plain.instruction(asked, [one]).tolist() == plain.instruction(asked, []).tolist()


def test_words_of_ones_own_may_be_a_single_line():
  """The system says all that stands before the sentence, also where no heading is its end."""
  for heading in ('Tag drugs in: ', 'Note:\n'):
    asked = ask('ner', CORPUS)._replace(instruction='Tag drugs in: ', heading=heading)
    assert chat.turns(asked, ['No fever.\n'], [], True) == [
      {'role': 'system', 'content': 'Tag drugs in:'}, {'role': 'user', 'content': 'No fever.'}]
    (only,) = chat.turns(asked, ['No fever.'], [], False)
    assert only['content'] == 'Tag drugs in:\nNo fever.'


def test_shots_are_turns_and_the_endpoint_is_sent_the_same():
  """Two solved sentences; without a turn for the system the first question begins with what it
  would say."""
  asked = ask('ner', CORPUS)
  shots = tuple(Example(note.name, 0, note.text, note.spans) for note in CORPUS.train)
  prompt = Prompt(SimpleNamespace(ask=asked), shots)
  new = Example('c', 0, 'No cough', ())
  head = asked.instruction.removesuffix(INPUT_HEADING).strip()
  roles = ['user', 'assistant', 'user', 'assistant', 'user']
  with_system, without = (messages(prompt, new, system) for system in (True, False))
  assert [turn['role'] for turn in with_system] == ['system', *roles]
  assert [turn['role'] for turn in without] == roles
  assert with_system[0]['content'] == head and with_system[2:] == without[1:]
  assert without[0]['content'] == f'{head}\n{with_system[1]["content"]}'
  assert with_system[2]['content'] == 'No <span class="problem">fever</span>.'
  assert with_system[-1]['content'] == '### Input Text:\nNo cough\n### Output Text:'


@pytest.mark.parametrize('name', ['smollm2', *TEMPLATES])
def test_shots_of_training_are_the_first_turns(tokenizer, name):
  """Token by token what the template gives the whole dialogue of six turns; of an endpoint, too."""
  own, asked = tokenizer(name), ask('ner', CORPUS)
  shots = tuple(Example('x', 0, text, (span,)) for text, span in (
    ('Mild rash.', Span(5, 9, 'problem')), ('Cough since May', Span(0, 5, 'problem'))))
  (part,) = encode_site(
    CORPUS, own, max_length=400, chat=True, show=lambda name, form, solved: shots).tasks
  head = asked.instruction.removesuffix(INPUT_HEADING).strip()
  system = chat.chat_of(own).system
  for example, tokens in (*zip(part.solved, part.train, strict=True),
                          *zip(part.test, part.test_tokens, strict=True)):
    first, second, third = (
      f'### Input Text:\n{text}\n### Output Text:'
      for text in ('Mild rash.', 'Cough since May', example.text))
    before = [('system', head), ('user', first)] if system else [('user', f'{head}\n{first}')]
    said = [
      *before, ('assistant', 'Mild <span class="problem">rash</span>.'), ('user', second),
      ('assistant', '<span class="problem">Cough</span> since May'), ('user', third)]
    answer = asked.render(example)[1].strip()
    assert [*part.instruction[:-1], *tokens.tokens] == whole(own, *said, ('assistant', answer))
    fed = [*part.instruction[:-1], *tokens.tokens[:tokens.prompt_length]]
    assert fed == whole(own, *said, add_generation_prompt=True)
    assert messages(Prompt(part, ()), example, system) == [
      {'role': role, 'content': text} for role, text in said]
  assert own.decode(part.instruction).endswith('### Input Text:\nNo')
  encoder = chat.make_encoder(own, True)
  assert encoder.within(part.ask, part.instruction) < 10


@pytest.mark.parametrize('template, message', [
  ('', 'the tokenizer of the model has no chat template'),
  ('{{ raise_exception("user and system alternate") }}', 'fails: user and system alternate'),
  ('{% for', 'the chat template of the model fails: '),
  ('{{ messages[0].content.missing() }}', 'the chat template of the model fails: '),
  # The answer stands elsewhere than where one is asked for; the user's words are lost; no end.
  ('{% for m in messages %}<|head|>{{ m.role }}:{{ m.content }}<|eot|>{% endfor %}'
   '{% if add_generation_prompt %}<|head|>model:{% endif %}', 'otherwise than it writes one'),
  ('<|begin|>{% for m in messages if m.role == "assistant" %}{{ m.content }}<|eot|>{% endfor %}',
   'otherwise than it writes one'),
  ('{% for m in messages %}<|head|>{{ m.role }}:{{ m.content }}\n{% endfor %}'
   '{% if add_generation_prompt %}<|head|>assistant:{% endif %}', "ends an answer with '\\n'"),
  ('{% for m in messages %}<|head|>{{ m.role }}:{{ m.content }}{% endfor %}'
   '{% if add_generation_prompt %}<|head|>assistant:{% endif %}', "ends an answer with ''"),
])
def test_templates_that_cannot_be_used_are_refused_in_one_line(tokenizer, template, message):
  own = tokenizer('llama3', template or ' ')
  own.chat_template = template or None
  with pytest.raises(InputError, match='config.data.chat=True: ') as caught:
    chat.make_encoder(own, True)
  assert message in str(caught.value) and '\n' not in str(caught.value)


def test_a_date_does_not_change_tokens_from_day_to_day(tokenizer):
  """Though the template asks for today's."""
  own = tokenizer('dated', TEMPLATES['llama3'].replace(
    'date_string if date_string is defined else ', ''))
  encoder = chat.make_encoder(own, True)
  assert 'Today: 26 Jul 2024' in own.decode(encoder.instruction(ask('ner', CORPUS), []))


def test_blanks_before_an_answer_are_joined_as_before_any(tokenizer):
  """By SmolLM2's rules two line ends are one token at the end of a text, two before a word."""
  own = tokenizer('thinking', TEMPLATES['qwen3'])
  (part,) = encode_site(CORPUS, own, max_length=400, chat=True).tasks
  asked = ask('ner', CORPUS)
  for tokens, example in zip(part.train, part.solved, strict=True):
    said = chat.turns(asked, [asked.render(example)[0]], [asked.render(example)[1]], True)
    assert [*part.instruction[:-1], *tokens.tokens] == list(
      own.apply_chat_template(said, **PINNED)['input_ids'])
    assert own.decode(tokens.tokens[:tokens.prompt_length]).endswith('</think>\n\n')


def test_an_answer_that_changes_the_tokens_of_its_question_is_refused(tokenizer):
  """A question that ends in letters to which those of the answer are joined."""
  own = tokenizer('joined', (
    '{% for m in messages %}{{ m.content }}{% if m.role == "assistant" %}<|eot|>{% endif %}'
    '{% endfor %}'))
  encoder = chat.make_encoder(own, True)
  asked = ask('ner', CORPUS)._replace(render=lambda example: ('no fe', 'ver'))
  example = Example('n7', 5, 'fever', ())
  with pytest.raises(InputError, match="note 'n7', character 5: the tokens of"):
    encoder.encode(asked, encoder.instruction(asked, [example]), [example])
