"""The table of instructions against the paper's, and which instruction a task gets."""

from __future__ import annotations

import json

import pytest

from grit_jax.errors import GritError
from grit_jax.evaluation.mteb_instructions import (
    BENCHMARK,
    TaskPrompt,
    grit_instruction,
    grit_table,
    instruction_for,
    instruction_lines,
    read_instructions,
)

# Of the paper's evaluation script (instruction set e5), by the names of the 41 tasks of MTEB(eng, v2).
GOLDEN = """
AmazonCounterfactualClassification: Classify a given Amazon customer review text as either counterfactual or not-counterfactual
ArguAna: Given a claim, find documents that refute the claim
ArXivHierarchicalClusteringP2P: Identify the main and secondary category of Arxiv papers based on the titles and abstracts
ArXivHierarchicalClusteringS2S: Identify the main and secondary category of Arxiv papers based on the titles
AskUbuntuDupQuestions: Retrieve duplicate questions from AskUbuntu forum
Banking77Classification: Given a online banking query, find the corresponding intents
BiorxivClusteringP2P.v2: Identify the main category of Biorxiv papers based on the titles and abstracts
BIOSSES: Retrieve semantically similar text.
ClimateFEVERHardNegatives: Given a claim about climate change, retrieve documents that support or refute the claim
CQADupstackGamingRetrieval: Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given question
CQADupstackUnixRetrieval: Given a question, retrieve detailed question descriptions from Stackexchange that are duplicates to the given question
FEVERHardNegatives: Given a claim, retrieve documents that support or refute the claim
FiQA2018: Given a financial question, retrieve user replies that best answer the question
HotpotQAHardNegatives: Given a multi-hop question, retrieve documents that can help answer the question
ImdbClassification: Classify the sentiment expressed in the given movie review text from the IMDB dataset
MassiveIntentClassification: Given a user utterance as query, find the user intents
MassiveScenarioClassification: Given a user utterance as query, find the user scenarios
MedrxivClusteringP2P.v2: Identify the main category of Medrxiv papers based on the titles and abstracts
MedrxivClusteringS2S.v2: Identify the main category of Medrxiv papers based on the titles
MindSmallReranking: Retrieve relevant news articles based on user browsing history
MTOPDomainClassification: Classify the intent domain of the given utterance in task-oriented conversation
SCIDOCS: Given a scientific paper title, retrieve paper abstracts that are cited by the given paper
SICK-R: Retrieve semantically similar text.
SprintDuplicateQuestions: Retrieve duplicate questions from Sprint forum
StackExchangeClustering.v2: Identify the topic or theme of StackExchange posts based on the titles
StackExchangeClusteringP2P.v2: Identify the topic or theme of StackExchange posts based on the given paragraphs
STS12: Retrieve semantically similar text.
STS13: Retrieve semantically similar text.
STS14: Retrieve semantically similar text.
STS15: Retrieve semantically similar text.
STS17: Retrieve semantically similar text.
STS22.v2: Retrieve semantically similar text.
STSBenchmark: Retrieve semantically similar text.
SummEvalSummarization.v2: Given a news summary, retrieve other semantically similar summaries
Touche2020Retrieval.v3: Given a question, retrieve detailed and persuasive arguments that answer the question
ToxicConversationsClassification: Classify the given comments as either toxic or not toxic
TRECCOVID: Given a query on COVID-19, retrieve documents that answer the query
TweetSentimentExtractionClassification: Classify the sentiment of a given tweet as either positive, negative, or neutral
TwentyNewsgroupsClustering.v2: Identify the topic or theme of the given news articles
TwitterSemEval2015: Retrieve tweets that are semantically similar to the given tweet
TwitterURLCorpus: Retrieve tweets that are semantically similar to the given tweet
"""


def golden() -> dict[str, str]:
    return dict(line.split(": ", 1) for line in GOLDEN.strip().splitlines())


def test_the_table_is_the_papers():
    table = grit_table()
    assert {name: entry.query for name, entry in table[BENCHMARK].items()} == golden()
    assert len(golden()) == 41
    types = [entry.type for entry in table[BENCHMARK].values()]
    counts = {kind: types.count(kind) for kind in sorted(set(types))}
    assert counts == {
        "Classification": 8,
        "Clustering": 8,
        "PairClassification": 3,
        "Reranking": 2,
        "Retrieval": 10,
        "STS": 9,
        "Summarization": 1,
    }
    # The paper's 56 tasks, its 12 CQADupstack ones as one, under their own names or a newer one.
    renamed = {entry.like for entry in table[BENCHMARK].values() if entry.like}
    assert renamed <= table["others"].keys()
    own = {name for name, entry in table[BENCHMARK].items() if not entry.like}
    assert len(own | table["others"].keys()) == 56


def test_tasks_whose_metadata_have_no_prompt_get_the_papers():
    """Of these mteb gives the generic sentence to queries and documents alike."""
    for name in (
        "FEVERHardNegatives",
        "ClimateFEVERHardNegatives",
        "HotpotQAHardNegatives",
        "Touche2020Retrieval.v3",
        "CQADupstackGamingRetrieval",
        "CQADupstackUnixRetrieval",
    ):
        task = TaskPrompt(name, "Retrieval", None, "Retrieve text based on user query.")
        ours, theirs = grit_instruction(task), instruction_for(task, "mteb")
        assert ours.query == golden()[name] and ours.of(is_document=True) == ""
        assert theirs.query == theirs.document == "Retrieve text based on user query."


@pytest.mark.parametrize(
    "task,prompts,query,document,source",
    [
        (("AskUbuntuDupQuestions", "Reranking"), "grit", "Retrieve duplicate", "", "grit"),
        (("AskUbuntuDupQuestions", "Reranking"), "paper", "Retrieve dup", "Retrieve dup", "grit"),
        (("ArguAna", "Retrieval"), "paper", "Given a claim", "", "grit"),
        (("AskUbuntuDupQuestions", "Reranking"), "none", "", "", "none"),
        (("NFCorpus", "Retrieval", "theirs"), "grit", "Given a question", "", "grit"),
        (("MySTS", "STS"), "grit", "Retrieve semantically similar text.", "", "grit"),
        (("MySTS", "STS", "Compare"), "grit", "Compare", "", "mteb"),
        (("Mine", "Retrieval", "Find it"), "grit", "Find it", "", "mteb"),
        (("Mine", "Retrieval", {"query": "Find", "document": "D"}), "grit", "Find", "", "mteb"),
        (("Mine", "Retrieval", {"query": "Find", "document": "D"}), "mteb", "Find", "D", "mteb"),
        (("Mine", "Retrieval", {"query": "Find"}, "generic"), "mteb", "Find", "", "mteb"),
        (("Mine", "Retrieval", "Find", "generic"), "mteb", "Find", "Find", "mteb"),
        (("Mine", "Retrieval", None, "generic"), "grit", "", "", "none"),
    ],
)
def test_the_instruction_of_a_task(task, prompts, query, document, source):
    found = instruction_for(TaskPrompt(*task), prompts)
    assert found.query.startswith(query) and bool(found.query) == bool(query)
    assert found.document.startswith(document) and bool(found.document) == bool(document)
    assert (found.task, found.type, found.source) == (task[0], task[1], source)


def test_instructions_of_a_file(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({"ArguAna": "A", "B": {"query": "Q", "document": "D"}}))
    table = read_instructions(file)
    argu = instruction_for(TaskPrompt("ArguAna", "Retrieval"), str(file), table)
    assert (argu.query, argu.document, argu.source, argu.type) == ("A", "", "file", "Retrieval")
    assert instruction_for(TaskPrompt("B", "STS"), str(file), table).document == "D"
    other = instruction_for(TaskPrompt("FiQA2018", "Retrieval"), str(file), table)
    assert other.query == golden()["FiQA2018"]
    shown = instruction_lines([argu, table["B"], instruction_for(TaskPrompt("C", "X"), "none")])
    assert shown.splitlines() == [
        "ArguAna  Retrieval  A",
        "B                   Q  [documents: D]",
        "C        X          (none)",
    ]
    for text, message in (
        ("{", "not JSON"),
        ("[1]", "expected an object of tasks"),
        ('{"A": 1}', "A: expected a sentence or an object with query and document, got 1"),
        ('{"A": {"corpus": "x"}}', "A: expected a sentence"),
    ):
        file.write_text(text)
        with pytest.raises(GritError, match=message):
            read_instructions(file)
    with pytest.raises(GritError, match="No such file.*grit, paper, mteb, none or a JSON file"):
        read_instructions(tmp_path / "absent")
