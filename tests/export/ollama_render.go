package main

import (
	"encoding/json"
	"os"
	"strings"
	"text/template"
)

type Message struct {
	Role, Content, Thinking string
}

type Case struct {
	Template          string
	Messages          []Message
	Think, IsThinkSet bool
}

// Ollama's view of a conversation: neighbours of one role are one message, and System holds all system messages.
func joined(given []Message) (string, []*Message) {
	var system []string
	var list []*Message
	for i := range given {
		one := given[i]
		if one.Role == "system" {
			system = append(system, one.Content)
		}
		if n := len(list); n > 0 && list[n-1].Role == one.Role && one.Role != "tool" {
			list[n-1].Content += "\n\n" + one.Content
		} else {
			list = append(list, &one)
		}
	}
	return strings.Join(system, "\n\n"), list
}

func main() {
	var cases []Case
	if err := json.NewDecoder(os.Stdin).Decode(&cases); err != nil {
		panic(err)
	}
	texts := []string{}
	for _, one := range cases {
		made := template.Must(template.New("").Option("missingkey=zero").Parse(one.Template))
		system, messages := joined(one.Messages)
		var text strings.Builder
		values := map[string]any{"System": system, "Messages": messages, "Tools": nil, "Response": "", "Think": one.Think,
			"ThinkLevel": "", "IsThinkSet": one.IsThinkSet}
		if err := made.Execute(&text, values); err != nil {
			panic(err)
		}
		texts = append(texts, text.String())
	}
	json.NewEncoder(os.Stdout).Encode(texts)
}
