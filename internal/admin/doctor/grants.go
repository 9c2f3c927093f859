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

const noKeyset = "KEYSET_FILE is not set, or invalid"

// keyset checks that the keyset decrypts a sample of the stored grants.
func (c Config) keyset(ctx context.Context) Finding {
	if c.Keyset == nil {
		return notChecked(noKeyset)
	}
	enabled := 0
	for _, key := range c.Keyset.Keys() {
		if key.Enabled {
			enabled++
		}
	}
	keys := fmt.Sprintf("%s, %d enabled; primary key %d", count(len(c.Keyset.Keys()), "key"), enabled, c.Keyset.Primary())
	if c.Redis == nil {
		return notChecked("%s; without Redis it is unknown whether it decrypts the grants", keys)
	}
	const fix = "restore the keyset that encrypted the grants from its copy, or enable the disabled key (tokenctl keyset show, keyset enable): without it no grant can be decrypted"
	key, err := c.store.CheckDecrypts(ctx)
	switch {
	case errors.Is(err, store.ErrKeyset):
		return fault(fix, "%s; this Redis is encrypted with another keyset, with its key %d", keys, key)
	case err != nil:
		return notChecked("%s; %s", keys, redisSilent)
	}
	sample, err := c.store.SampleValues(ctx, 16)
	if err != nil {
		return notChecked("%s; %s", keys, redisSilent)
	}
	if sample.Undecryptable > 0 {
		return fault(fix, "%s; of %s, %d cannot be decrypted", keys, count(sample.Grants, "grant"), sample.Undecryptable)
	}
	var used []string
	for _, id := range slices.Sorted(maps.Keys(sample.Keys)) {
		used = append(used, fmt.Sprintf("%d with key %d", sample.Keys[id], id))
	}
	if len(used) == 0 {
		return ok("%s; no grant is stored yet", keys)
	}
	if len(used) > 1 {
		return ok("%s; it decrypts a sample of %s, %s: a re-encryption is in progress, or due (tokenctl reencrypt)", keys, count(sample.Grants, "grant"), strings.Join(used, ", "))
	}
	return ok("%s; it decrypts a sample of %s", keys, count(sample.Grants, "grant"))
}

// grants checks the shares of grants that are not active, and their Zoom apps.
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
	var unknown []string
	for _, app := range slices.Sorted(maps.Keys(apps)) {
		if !slices.ContainsFunc(c.Apps, func(known App) bool { return known.Name == app }) {
			unknown = append(unknown, fmt.Sprintf("%d of the Zoom app %q", apps[app], app))
		}
	}
	const list = "see tokenctl grants stuck for the grants and their causes"
	switch {
	case len(unknown) > 0 && len(c.Apps) > 0:
		return fault("add the app to ZOOM_APPS_FILE again, or deregister its users: their tokens cannot be renewed", "%s; %s, which is not in the settings", found, strings.Join(unknown, ", "))
	case states[grant.StateDegraded]*10 > all:
		return fault(list, "%s", found)
	case states[grant.StateDegraded]*100 > all:
		return warning(list, "%s", found)
	case states[grant.StateReauthorizationRequired]*10 > all:
		return warning("these users must consent again: see tokenctl users list --state reauthorization_required", "%s", found)
	}
	return ok("%s", found)
}

// renewals checks for overdue renewals: no token server runs, or a Zoom app is paused.
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
		return ok("none is overdue")
	}
	late := now.Sub(overdue[0].At).Round(time.Second)
	const fix = "check that token servers run and are ready, and that no Zoom app is paused (checks pauses, zoom app): a token expires an hour after its last renewal"
	found := fmt.Sprintf("%s overdue, the oldest for %v", count(n, "renewal"), late)
	switch {
	case late > 2*time.Minute:
		return fault(fix, "%s", found)
	case late > 30*time.Second:
		return warning(fix, "%s", found)
	}
	return ok("%s", found)
}

// pauses checks whether calls to Zoom or Recall are paused.
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
		return ok("no calls to Zoom or Recall are paused")
	}
	var text []string
	for _, p := range paused {
		target := "Zoom app " + p.Name
		if kind, ofRecall := strings.CutPrefix(p.Name, "recall:"); ofRecall {
			target = "Recall (" + kind + ")"
		}
		line := fmt.Sprintf("%s is paused for %v", target, p.For.Round(time.Second))
		if p.Why != "" {
			line += ": " + p.Why
		}
		text = append(text, line)
	}
	return warning("wait: a pause ends by itself. For its cause, see the checks of the Zoom apps and of Recall", "%s", strings.Join(text, "; "))
}

// journal checks for responses from Zoom that are in the journal, but not in Redis.
func (c Config) journal(ctx context.Context) Finding {
	if c.JournalDir == "" {
		return notChecked("JOURNAL_DIR is not set")
	}
	if _, err := os.Stat(c.JournalDir); err != nil {
		return notChecked("no directory %s here: each token server and registrar has its own", filepath.Base(c.JournalDir))
	}
	if c.Keyset == nil {
		return notChecked(noKeyset)
	}
	entries, running, err := journal.Read(c.JournalDir, c.Keyset)
	if err != nil {
		return fault("check that the keyset is that of the process that wrote the journal: responses that are not in Redis cannot be read", "%v", err)
	}
	if len(entries) == 0 {
		return ok("empty")
	}
	found := count(len(entries), "response")
	if c.Redis == nil {
		return notChecked("%s; without Redis it is unknown whether it has them", found)
	}
	statuses, err := c.store.CheckResponses(ctx, JournaledResponses(entries))
	if err != nil {
		return notChecked("%s; %s", found, redisSilent)
	}
	missing := 0
	for i, status := range statuses {
		if status == store.ResponseMissing && c.Now().Sub(entries[i].Tokens.Issued) > time.Minute {
			missing++
		}
	}
	switch {
	case missing == 0:
		return ok("%s, all in Redis", found)
	case !running:
		return fault("start the process of this journal, or run tokenctl journal replay", "%s, of which Redis is missing %d; no process uses this journal", found, missing)
	}
	return fault("check that Redis accepts writes: until then these responses are on this disk only. If it is lost, their users must consent again", "%s, of which Redis is missing %d", found, missing)
}

// JournaledResponses returns what the store needs to look up entries of a journal.
func JournaledResponses(entries []journal.Entry) []store.JournaledResponse {
	responses := make([]store.JournaledResponse, len(entries))
	for i, e := range entries {
		responses[i] = store.JournaledResponse{ID: e.ID, OfConsent: e.OfConsent(), Spent: e.Spent, Refresh: store.RefreshFingerprint(e.Tokens.Refresh)}
	}
	return responses
}
