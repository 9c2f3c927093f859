package store

import (
	"fmt"
	"strings"

	"tokenprovider/internal/grant"
)

// userField is a text field of a record that the API's User shows, besides the
// state. A change of its value is published to watchers.
type userField struct {
	name string                     // in Redis
	of   func(*grant.Grant) *string // in a grant
	in   func(*Change) *string      // in a change; nil: not changed
	// ofCredential is set for what the vendor reports about a credential. The field is
	// removed together with the credential.
	ofCredential bool
}

// userFields are the fields that userField describes. Reading a record, changing it
// and detecting changes all use this list.
var userFields = []userField{
	{name: "reason", of: func(g *grant.Grant) *string { return &g.Reason }, in: func(c *Change) *string { return c.Reason }},
	{name: "health", of: func(g *grant.Grant) *string { return &g.Health }, in: func(c *Change) *string { return c.Health }, ofCredential: true},
	{name: "status", of: func(g *grant.Grant) *string { return &g.Status }, in: func(c *Change) *string { return c.Status }, ofCredential: true},
	{name: "meeting_sync", of: func(g *grant.Grant) *string { return &g.MeetingSync }, in: func(c *Change) *string { return c.MeetingSync }, ofCredential: true},
	{name: "zoom_user", of: func(g *grant.Grant) *string { return &g.ZoomUser }, in: func(c *Change) *string { return c.zoomUser() }},
	{name: "zoom_account", of: func(g *grant.Grant) *string { return &g.ZoomAccount }, in: func(c *Change) *string { return c.zoomAccount() }},
	{name: "credential", of: func(g *grant.Grant) *string { return &g.Credential }, in: func(c *Change) *string { return c.Credential }},
}

// Change is a change of a grant. Nil and zero leave a field as it is. Without a
// credential, what the vendor reports about it is removed too.
type Change struct {
	Identity            *Identity
	Credential          *string // id at the vendor; "": none
	ReplacedCredential  *string
	UnrecordedZoomUsers *[]string
	Secrets             *[]grant.CallbackSecret
	Reason              *string
	Health              *string // what the vendor finds wrong with the credential, for people
	Status              *string // as the vendor reports it
	MeetingSync         *string // as the vendor reports it
	Deleting            bool    // final
	Revoke              bool    // on removal, also revoke the grant at Zoom
}

func (c *Change) zoomUser() *string {
	if c.Identity == nil {
		return nil
	}
	return &c.Identity.ZoomUser
}

func (c *Change) zoomAccount() *string {
	if c.Identity == nil {
		return nil
	}
	return &c.Identity.ZoomAccount
}

// changed returns a field's new value, nil if it does not change.
func (f userField) changed(c *Change) *string {
	if f.ofCredential && c.Credential != nil && *c.Credential == "" {
		return c.Credential
	}
	return f.in(c)
}

// luaUserFields declares the names in userFields for the scripts.
func luaUserFields() string {
	var all, ofCredential []string
	for _, f := range userFields {
		all = append(all, "'"+f.name+"'")
		if f.ofCredential {
			ofCredential = append(ofCredential, "'"+f.name+"'")
		}
	}
	return fmt.Sprintf("local user_fields, credential_fields = {'state', %s}, {%s}\n", strings.Join(all, ", "), strings.Join(ofCredential, ", "))
}
