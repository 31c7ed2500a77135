// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"time"
)

// complaints logs why a sink fails: the first time, when the reason is another,
// and otherwise once a minute, as it may fail for hours.
type complaints struct {
	log  *slog.Logger
	last map[string]complaint // by message
}

type complaint struct {
	reason string
	at     time.Time
}

const complainAgain = time.Minute

func (c *complaints) say(message string, err error) {
	reason, now := err.Error(), time.Now()
	if len(reason) > maxReason {
		reason = reason[:maxReason] + "…"
	}
	before := c.last[message]
	since := now.Sub(before.at)
	// a reason may have a number in it that is another each time
	if since < complainAgain && (reason == before.reason || since < time.Second) {
		return
	}
	c.last[message] = complaint{reason, now}
	c.log.Warn(message, "why", reason)
}

// maxReason bounds what a collector can have us log, in bytes.
const maxReason = 500
