"""What reading a site's notes left out or repaired, in words."""

import re

# What a reading can report having set aside: key -> how the table calls it.
_DROPPED = {
  'used_nested': 'nested', 'used_crossing': 'crossing sentences', 'too_long': 'too long',
  'too_long_entities': 'entities of them',
  'shown_examples': 'examples of sentences that prompts show',
  'used_invalid_pairs': 'modifiers of a wrong type', 'invalid_pairs': 'modifiers of a wrong type',
  'between_sentences': 'relations whose ends no sentence holds together',
  'unmapped': 'of other types', 'unmapped_relations': 'other relations',
  'unmapped_attributes': 'other attributes', 'attributes_without_cue': 'negations without a cue',
  'discontinuous': 'discontinuous', 'duplicate': 'repeated', 'leaked_documents': 'leaked notes',
  'near_duplicate_documents': 'notes nearly as test notes',
  'renamed_documents': 'notes that share an id (all kept, on one side)',
  'sentences_as_notes': 'sentences taken for notes, for want of several notes',
  'cut_entities': 'entities lost by that',
  'documents_of_one_source': 'notes of a single source, each drawn alone',
  'merged_records': 'records merged into others', 'fragments': 'pieces of split mentions',
  'composite': 'mentions of several concepts',
  'duplicate_documents': 'repeated notes', 'nary': 'n-ary relations',
  'unanchored': 'relations without an end', 'unplaced': 'without a place',
  'text_mismatch': 'quoted otherwise', 'stray_inside': 'tags that go on from nothing',
  'broken_markup': 'tags without a partner', 'moved_passages': 'passages moved',
  'cut_sentences': 'cut sentences', 'unlabelled': 'entities without a word of their own',
  'used_blank': 'entities of blanks', 'empty_tokens': 'empty tokens',
  'empty_records': 'empty rows', 'relation_notes': 'notes on relations',
  'comments': 'comment lines',
  'used_crossing_mains': 'main entities crossing sentences',
  'relation_attributes': 'attributes of relations', 'coreferences': 'coreferences',
  'normalisations': 'normalisations', 'notes': "annotators' notes",
  'combinations': 'combinations of drugs', 'duplicate_entities': 'entities of repeated notes',
  'empty_mentions': 'mentions without a character', 'out_of_range': 'mentions out of the text',
  'placed_by_words': 'placed by their words only',
  # The rule by which offsets were read that did not lead to the quoted words.
  'offsets_shifted': 'offsets shifted alike', 'offsets_utf16': 'offsets in UTF-16 units',
  'offsets_line_ends': 'offsets that count line ends otherwise',
  'offsets_blanks': 'offsets that count runs of blanks as one', 'offsets_bytes': 'offsets in bytes',
  'offsets_escaped': 'offsets that count &, < and > as escaped',
  'offsets_decomposed': 'offsets that count accents', 'offsets_of_passages': 'offsets in a passage',
  'offsets_of_ends': 'offsets whose ends are the last character or a length',
  'offsets_composed': 'offsets that count no accents',
  'places_otherwise': 'places that count words or lines otherwise',
  'unannotated': 'notes that nobody has annotated',
  'other_annotations': 'annotations of further annotators',
  'predictions': 'notes whose annotation is a model\'s', 'other_results': 'results of other kinds',
  'other_views': 'texts besides the first',
  'absent_types': 'types that never occur (taken as not annotated)',
}
# Counts of what a site holds, which other columns show; every other count is shown by its key.
_HOLDS = re.compile(
  r'(raw|mapped|lacking)_.*|(used_)?(sentences|entities|mains|modifiers|rows)|'
  r'relations|events|assertions|records|attributes|corrupted|'
  r'measured_(examples|entities)|((train|dev|test|validation)_)?(documents|sentences)|(held_out|unseen)_test_.*')


def set_aside(report: dict[str, int], unit: str = 'notes') -> str:
  """What a site's reading left out or repaired, in words; `unit` is what its documents are called.
  """
  unnamed = {key: key.replace('_', ' ') for key in report
             if key not in _DROPPED and not _HOLDS.fullmatch(key)}
  return ', '.join(
    f'{report[key]:,} {name.replace("notes", unit)}'
    for key, name in (_DROPPED | unnamed).items() if report.get(key))
