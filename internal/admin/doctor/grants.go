package doctor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"tokenprovider/internal/grant"
	"tokenprovider/internal/journal"
	"tokenprovider/internal/store"
)

func (c Config) keyset(ctx context.Context) Finding {
	if c.Keyset == nil {
		return notChecked("KEYSET_FILE is not set, or of no use")
	}
	enabled := 0
	for _, key := range c.Keyset.Keys() {
		if key.Enabled {
			enabled++
		}
	}
	keys := fmt.Sprintf("%s, %d enabled; %d seals", count(len(c.Keyset.Keys()), "key"), enabled, c.Keyset.Primary())
	if c.Redis == nil {
		return notChecked("%s; whether they open what is stored is not known without Redis", keys)
	}
	const mend = "put back the keyset that the grants were sealed with, from its copy, or enable the key that is disabled (tokenctl keyset show, keyset enable): without it nothing can be read"
	key, err := c.store.CheckDecrypts(ctx)
	switch {
	case errors.Is(err, store.ErrKeyset):
		return fault(mend, "%s; the records in this Redis were sealed with another keyset, by key %d", keys, key)
	case err != nil:
		return notChecked("%s; %s", keys, redisSilent)
	}
	sample, err := c.store.SampleValues(ctx, 16)
	if err != nil {
		return notChecked("%s; %s", keys, redisSilent)
	}
	if sample.Undecryptable > 0 {
		return fault(mend, "%s; of %s, %d do not open", keys, count(sample.Grants, "grant"), sample.Undecryptable)
	}
	var used []string
	for _, id := range slices.Sorted(maps.Keys(sample.Keys)) {
		used = append(used, fmt.Sprintf("%d of them by %d", sample.Keys[id], id))
	}
	if len(used) == 0 {
		return ok("%s; nothing is stored yet", keys)
	}
	if len(used) > 1 {
		return ok("%s; it opens a sample of %s, sealed %s: sealing again is under way, or due (tokenctl reencrypt)", keys, count(sample.Grants, "grant"), strings.Join(used, ", "))
	}
	return ok("%s; it opens a sample of %s", keys, count(sample.Grants, "grant"))
}

func (c Config) grants(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	states, errStates := c.store.CountByState(ctx)
	apps, errApps := c.store.CountByApp(ctx)
	if err := errors.Join(errStates, errApps); err != nil {
		return notChecked(redisSilent)
	}
	all, text := 0, []string{}
	for _, state := range grant.States() {
		all += states[state]
		if states[state] > 0 {
			text = append(text, fmt.Sprintf("%d %s", states[state], strings.ReplaceAll(string(state), "_", " ")))
		}
	}
	if all == 0 {
		return ok("none")
	}
	found := strings.Join(text, ", ")
	var strange []string
	for _, app := range slices.Sorted(maps.Keys(apps)) {
		if !slices.ContainsFunc(c.Apps, func(known App) bool { return known.Name == app }) {
			strange = append(strange, fmt.Sprintf("%d of the Zoom app %q", apps[app], app))
		}
	}
	const look = "tokenctl grants stuck says which, and why"
	switch {
	case len(strange) > 0 && len(c.Apps) > 0:
		return fault("put the app back into ZOOM_APPS_FILE, or deregister its users: their tokens cannot be renewed", "%s; %s, which is not in the settings", found, strings.Join(strange, ", "))
	case states[grant.Degraded]*10 > all:
		return fault(look, "%s", found)
	case states[grant.Degraded]*100 > all:
		return warning(look, "%s", found)
	case states[grant.ReauthorizationRequired]*10 > all:
		return warning("these users have to consent again: tokenctl users list --state reauthorization_required", "%s", found)
	}
	return ok("%s", found)
}

// renewals looks for what should have been renewed and was not: the sign of
// refreshers that do not run, or of an app that they may not call Zoom for.
func (c Config) renewals(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	now, errNow := c.store.Now(ctx)
	overdue, errOverdue := c.store.ListPlanned(ctx, now, 1)
	n, errCount := c.store.CountOverdue(ctx, now)
	if err := errors.Join(errNow, errOverdue, errCount); err != nil {
		return notChecked(redisSilent)
	}
	if len(overdue) == 0 {
		return ok("nothing is overdue")
	}
	late := now.Sub(overdue[0].At).Round(time.Second)
	const mend = "see that token servers run and are ready, and whether a Zoom app is paused (pauses, zoom app): tokens end an hour after their last renewal"
	found := fmt.Sprintf("%s overdue, the oldest for %v", count(n, "renewal"), late)
	switch {
	case late > 2*time.Minute:
		return fault(mend, "%s", found)
	case late > 30*time.Second:
		return warning(mend, "%s", found)
	}
	return ok("%s", found)
}

func (c Config) pauses(ctx context.Context) Finding {
	if c.Redis == nil {
		return notChecked(noRedis)
	}
	names := []string{"recall:list", "recall:other"}
	for _, app := range c.Apps {
		names = append(names, app.Name)
	}
	paused, err := c.store.ListPauses(ctx, names)
	if err != nil {
		return notChecked(redisSilent)
	}
	if len(paused) == 0 {
		return ok("Zoom and Recall are called as usual")
	}
	var text []string
	for _, p := range paused {
		who := "Zoom app " + p.Name
		if kind, ofRecall := strings.CutPrefix(p.Name, "recall:"); ofRecall {
			who = "Recall (" + kind + ")"
		}
		line := fmt.Sprintf("%s is left alone for %v", who, p.For.Round(time.Second))
		if p.Why != "" {
			line += ": " + p.Why
		}
		text = append(text, line)
	}
	return warning("it ends by itself when they answer again; see what the checks of the Zoom apps and of Recall say", "%s", strings.Join(text, "; "))
}

// journal looks for answers of Zoom's that Redis does not have.
func (c Config) journal(ctx context.Context) Finding {
	if c.JournalDir == "" {
		return notChecked("JOURNAL_DIR is not set")
	}
	if _, err := os.Stat(c.JournalDir); err != nil {
		return notChecked("there is no folder %s here: each token server and registrar has its own", filepath.Base(c.JournalDir))
	}
	if c.Keyset == nil {
		return notChecked("KEYSET_FILE is not set, or of no use")
	}
	entries, running, err := journal.Read(c.JournalDir, c.Keyset)
	if err != nil {
		return fault("see whether the keyset is the one of the process that has written it: what Redis may not have cannot be read", "%v", err)
	}
	if len(entries) == 0 {
		return ok("empty")
	}
	found := count(len(entries), "answer")
	if c.Redis == nil {
		return notChecked("%s; whether Redis has them is not known", found)
	}
	standings, err := c.store.CheckResponses(ctx, JournaledResponses(entries))
	if err != nil {
		return notChecked("%s; %s", found, redisSilent)
	}
	waiting := 0
	for i, standing := range standings {
		if standing == store.ResponseMissing && c.Now().Sub(entries[i].Tokens.Issued) > time.Minute {
			waiting++
		}
	}
	switch {
	case waiting == 0:
		return ok("%s, all of them in Redis", found)
	case !running:
		return fault("start the process that the folder is of, or run tokenctl journal replay", "%s, of which Redis is waiting for %d; no process has the folder", found, waiting)
	}
	return fault("see that Redis takes writes: these answers are on this disk only, and their users are lost with it", "%s, of which Redis is waiting for %d", found, waiting)
}

// Answers is what the store can tell entries of a journal by.
func JournaledResponses(entries []journal.Entry) []store.JournaledResponse {
	answers := make([]store.JournaledResponse, len(entries))
	for i, e := range entries {
		answers[i] = store.JournaledResponse{ID: e.ID, OfConsent: e.OfConsent(), Spent: e.Spent, Refresh: store.RefreshFingerprint(e.Tokens.Refresh)}
	}
	return answers
}
