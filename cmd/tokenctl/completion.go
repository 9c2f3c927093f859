package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/alecthomas/kong"

	"tokenprovider/internal/config"
)

type completion struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"The shell: bash, zsh or fish."`
}

// Help implements [kong.HelpProvider].
func (*completion) Help() string {
	return `Put it where the shell finds it, or into its start file:

  source <(tokenctl completion bash)

  source <(tokenctl completion zsh)

  tokenctl completion fish > ~/.config/fish/completions/tokenctl.fish`
}

// The shells' scripts ask the program itself how a line may go on: what is behind
// the cursor is not sent. Where it does not know, files are offered.
var scripts = map[string]string{
	"bash": `_tokenctl() {
  local IFS=$'\n'
  COMPREPLY=($(tokenctl __complete "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null | cut -f1))
}
complete -o default -F _tokenctl tokenctl
`,
	"zsh": `#compdef tokenctl
_tokenctl() {
  local -a words_found
  local line
  while IFS= read -r line; do
    words_found+=("${${line%%$'\t'*}//:/\\:}:${line#*$'\t'}")
  done < <(tokenctl __complete "${(@)words[2,CURRENT]}" 2>/dev/null)
  if (( ${#words_found} )); then
    _describe tokenctl words_found
  else
    _files
  fi
}
if [ "$funcstack[1]" = "_tokenctl" ]; then
  _tokenctl "$@"
else
  compdef _tokenctl tokenctl
fi
`,
	"fish": `function __tokenctl_complete
  set -l words (commandline -opc) (commandline -ct)
  tokenctl __complete $words[2..-1] 2>/dev/null
end
complete -c tokenctl -a '(__tokenctl_complete)'
`,
}

func (c *completion) run(_ context.Context, s *session) error {
	_, err := fmt.Fprint(s.stdout, scripts[c.Shell])
	return err
}

type complete struct {
	Words []string `arg:"" optional:"" passthrough:"all"`
}

func (c *complete) run(_ context.Context, s *session) error {
	model, err := config.Model("tokenctl", &commands{})
	if err != nil {
		return err
	}
	for _, word := range suggest(model.Node, c.Words) {
		_, _ = fmt.Fprintf(s.stdout, "%s\t%s\n", word.text, word.help)
	}
	return nil
}

// suggestion is a word that a line may go on with, and what it means.
type suggestion struct{ text, help string }

// suggest returns how the last word, which may be empty, may be completed.
func suggest(node *kong.Node, words []string) (found []suggestion) {
	words = joinValues(words)
	if len(words) == 0 {
		words = []string{""}
	}
	last := words[len(words)-1]
	offer := func(text, help string) {
		if text != "" && strings.HasPrefix(text, last) {
			help, _, _ = strings.Cut(help, ". ")
			found = append(found, suggestion{text, strings.TrimSuffix(help, ".")})
		}
	}
	positional := 0
	var wants *kong.Flag // that the word is the value of
	for _, word := range words[:len(words)-1] {
		switch {
		case wants != nil:
			wants = nil
		case strings.HasPrefix(word, "-"):
			if flag := flagOf(node, word); flag != nil && !flag.IsBool() && !strings.Contains(word, "=") {
				wants = flag
			}
		default:
			if child := childOf(node, word); child != nil {
				node = child
			} else {
				positional++
			}
		}
	}
	switch name, _, hasValue := strings.Cut(last, "="); {
	case wants != nil:
		for _, value := range wants.EnumSlice() {
			offer(value, "")
		}
	case hasValue && strings.HasPrefix(last, "--"):
		if flag := flagOf(node, name); flag != nil {
			for _, value := range flag.EnumSlice() {
				offer(name+"="+value, "")
			}
		}
	case strings.HasPrefix(last, "-"):
		for _, flags := range node.AllFlags(true) {
			for _, flag := range flags {
				offer("--"+flag.Name, flag.Help)
			}
		}
	case len(node.Children) > 0:
		for _, child := range node.Children {
			if !child.Hidden {
				offer(child.Name, child.Help)
			}
		}
	case positional < len(node.Positional):
		for _, value := range node.Positional[positional].EnumSlice() {
			offer(value, "")
		}
	}
	return found
}

// joinValues puts --flag = value together, which bash takes apart.
func joinValues(words []string) []string {
	var joined []string
	for i := 0; i < len(words); i++ {
		if words[i] == "=" && len(joined) > 0 {
			value := ""
			if i++; i < len(words) {
				value = words[i]
			}
			joined[len(joined)-1] += "=" + value
			continue
		}
		joined = append(joined, words[i])
	}
	return joined
}

func childOf(node *kong.Node, name string) *kong.Node {
	for _, child := range node.Children {
		if child.Name == name {
			return child
		}
	}
	return nil
}

func flagOf(node *kong.Node, word string) *kong.Flag {
	name, _, _ := strings.Cut(word, "=")
	for _, flags := range node.AllFlags(false) {
		for _, flag := range flags {
			if name == "--"+flag.Name || flag.Short != 0 && name == "-"+string(flag.Short) {
				return flag
			}
		}
	}
	return nil
}
