// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"reflect"
	"slices"
	"strings"

	"github.com/agnivade/levenshtein"
)

// variablePrefix is what the variables of the environment begin with that set something.
const variablePrefix = "STATED_"

// variable is the name of the variable that sets a key.
func variable(key string) string {
	return variablePrefix + strings.ToUpper(strings.ReplaceAll(key, ".", "_"))
}

// configKeys lists the keys that one word can set, and those of lists.
func configKeys(t reflect.Type, section string) (words, lists []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		name := section + f.Tag.Get("yaml")
		switch f.Type.Kind() {
		case reflect.Struct:
			w, l := configKeys(f.Type, name+".")
			words, lists = append(words, w...), append(lists, l...)
		case reflect.Slice:
			lists = append(lists, name)
		default:
			words = append(words, name)
		}
	}
	return words, lists
}

// Ignored names the variables of an environment that look like settings of stated
// and set nothing, each with what may be meant. They are no mistakes for certain:
// Kubernetes makes such for a service that is called stated.
func Ignored(environ []string) (names []string) {
	words, lists := configKeys(reflect.TypeFor[Config](), "")
	for _, kv := range environ {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, variablePrefix) || slices.ContainsFunc(words, func(key string) bool { return variable(key) == name }) {
			continue
		}
		hint := ""
		if i := slices.IndexFunc(lists, func(key string) bool { return variable(key) == name }); i >= 0 {
			hint = " (a list: --set '" + lists[i] + "=[...]' sets it)"
		} else if near := nearest(name, words); near != "" {
			hint = " (" + near + "?)"
		}
		names = append(names, name+hint)
	}
	slices.Sort(names)
	return names
}

// nearest returns the variable that has most in common with a name, "" where that
// is too little for a slip of the pen.
func nearest(name string, keys []string) (near string) {
	least := len(name)/4 + 1
	for _, key := range keys {
		if d := levenshtein.ComputeDistance(name[len(variablePrefix):], variable(key)[len(variablePrefix):]); d < least {
			near, least = variable(key), d
		}
	}
	return near
}
