#!/bin/sh
# Shows how training data is made, with mlxforge at $1: documents ($3, else the sample handbook) into a knowledge base, rows from it
# by a model ($2, else the shipped one), pairs, and a program's commands by a grammar. All of it lands in made/.
set -eu
forge=$1
model=${2:-tiny}
documents=${3:-sample:handbook/documents}
limit=8
[ "$model" = tiny ] || limit=30

step() { printf '\n\033[1m%s\033[0m\n' "$1"; }

mkdir -p made
step "1  documents -> knowledge base"
"$forge" ingest "$documents" --into made/kb.sqlite
"$forge" kb stats made/kb.sqlite

step "2  knowledge base -> questions and answers by $model, held to a schema, through the gates"
if [ "$model" = tiny ]; then
    echo "The shipped model has two million weights: it keeps to the form, and cannot say what a text says. See the gates refuse it."
fi
# Exit code 2: no row passed, which is what to expect of the shipped model.
"$forge" synth qa made/kb.sqlite -o made/sft.jsonl --model "$model" --limit $limit --styles factual --per-chunk 1 --force ||
    { [ $? = 2 ] && [ "$model" = tiny ]; }
"$forge" synth review made/kb.sqlite --list 4

if [ "$documents" = sample:handbook/documents ]; then
    step "3  questions -> preference pairs: what $model says without the text, against the right answer"
    "$forge" synth pairs made/kb.sqlite --model "$model" --questions sample:handbook/questions.test.jsonl --limit 12 \
        -o made/pairs.jsonl --force
    "$forge" synth review made/pairs.jsonl --again --list 2
fi

step "4  a program -> requests and its commands, by a grammar alone"
"$forge" synth commands sample:commands/mlxforge.yaml -o made/commands --rows 300 --force
"$forge" synth review made/commands/train.jsonl --again --list 3
