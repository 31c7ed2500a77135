// SPDX-License-Identifier: Apache-2.0

package main

import (
	"github.com/stated-tcp/stated/pkg/event"
	"github.com/stated-tcp/stated/pkg/render"
)

// processes looks up what is shown of a process beside its name.
type processes struct{}

func newProcesses() *processes { return &processes{} }

func (p *processes) of(t event.Task) render.Process { return render.Process{} }
