"""Answers of reasoning models: what stands before the last '</think>' is no part of them."""

import pytest

from fedmedjax.data.answers.thought import answer_of
from fedmedjax.data.tasks import STYLES, ask
from fedmedjax.types import Example, SiteCorpus, Span

TEXT = 'Has fever, takes aspirin today.'
SPANS = (Span(4, 9, 'problem'), Span(17, 24, 'drug'))
ASKED = ('problem', 'drug')
# A thought in which other words are tagged and listed, as models draft their answers.
DRAFT = ('Maybe <span class="problem">today</span>, or [{"entity": "problem", "text": "today"}]? '
         'No. <span class="drug">')


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('around', [
  '<think>\n{0}\n</think>\n\n{1}', '{0}</think>{1}', '<think></think>\n{1}',
  '<think>{0}</think>{1}<think>{0}</think>\n{1}\n', '<THINK>{0}</ Think >\n\n{1}',
  '<thinking>{0}</thinking>\n{1}', '{1}\n<think>{0}', '<think>{0}</think>\n{1}\n<think>{0}',
  '<think>{0}<\\/think>{1}', '<think>{0}</think>\n<answer>\n{1}\n</answer>',
  # Harmony's channels, whole, and as a server leaves them that takes the tags out.
  '<|channel|>analysis<|message|>{0}<|end|><|start|>assistant<|channel|>final<|message|>{1}'
  '<|return|>',
  '<|channel|>commentary to=x<|message|>{0}<|end|><|start|>assistant<|channel|>final '
  '<|constrain|>json<|message|>{1}', 'analysis{0}assistantfinal{1}', '{1}<|im_end|>\n{0}',
  # Magistral, Seed-OSS, Command A, MedGemma, OpenThinker, and what prompts ask for.
  '[THINK]{0}[/THINK]{1}', '<seed:think>{0}</seed:think>{1}', '<reasoning>{0}</reasoning>{1}',
  '<|START_THINKING|>{0}<|END_THINKING|><|START_RESPONSE|>{1}<|END_RESPONSE|>',
  '<unused94>thought\n{0}<unused95>{1}', '<thought>{0}</thought>{1}',
  '<|begin_of_thought|>{0}<|end_of_thought|>\n<|begin_of_solution|>{1}<|end_of_solution|>',
])
def test_only_the_answer_is_read(style, around):
  form = STYLES[style]
  generated = around.format(DRAFT, form.write(TEXT, SPANS))
  assert form.parse(generated, TEXT, ASKED) == (SPANS, False, True, 0)


@pytest.mark.parametrize('style', STYLES)
def test_a_long_thought_does_not_use_up_what_is_read_of_an_answer(style):
  form = STYLES[style]
  generated = f'<think>{DRAFT * 3000}</think>{form.write(TEXT, SPANS)}'
  assert form.parse(generated, TEXT, ASKED) == (SPANS, False, True, 0)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('opening', [
  '<think>\n', '<|channel|>analysis<|message|>', '[THINK]', '<unused94>thought\n'])
def test_a_thought_without_an_end_is_no_answer(style, opening):
  parsed = STYLES[style].parse(
    f'{opening}{DRAFT}{STYLES[style].write(TEXT, SPANS)}', TEXT, ASKED)
  assert (parsed.spans, parsed.failed, parsed.copied) == ((), True, False)


@pytest.mark.parametrize('style', STYLES)
@pytest.mark.parametrize('opening, closing', [
  ('<think>', '</think>'), ('[THINK]', '[/THINK]'), ('<|im_end|>', '<|channel|>final<|message|>'),
  ('<unused94>', '<answer>')])
def test_a_sentence_that_holds_such_tags_is_copied_all_the_same(style, opening, closing):
  """The question shows a look-alike of '<', as for tags of spans, and so does the answer."""
  asked = ask('ner', SiteCorpus('a', ASKED, (), (), {}), style)
  text = f'Note {closing} of fever {opening} ends'
  fever, end = text.index('fever'), 5 + len(closing)
  example = Example('n', 0, text, (Span(5, end, 'drug'), Span(fever, fever + 5, 'problem')))
  question, answer = asked.render(example)
  assert opening not in question and closing not in question
  assert len(question) == len(f'{text}\n### Output Text:\n')
  for generated in (answer, f'<think>{DRAFT}</think>\n\n{answer}'):
    assert asked.parse(generated, example) == (example.entities, False, True, 0)


def test_other_outputs_stay_as_they_are():
  for generated in ('', ' a <b> ', 'I think > so', '</ thoughts>', '[think]', '<think'):
    assert answer_of(generated) == generated
