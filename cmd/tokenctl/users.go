package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"tokenprovider/internal/app"
	"tokenprovider/internal/config"
	"tokenprovider/internal/grant"
	"tokenprovider/internal/store"
	registrarv1 "tokenprovider/proto/tokenprovider/registrar/v1"
	"tokenprovider/registrar"
)

// reading selects where users are read from: the registrar if REGISTRAR_ADDR is
// set, or else Redis, which needs no running registrar.
type reading struct {
	config.Registrar
	app.Records
}

// Check implements [config.Checker].
func (r *reading) Check(fault func(setting, text string)) {
	if r.RegistrarAddr != "" {
		r.Registrar.Check(fault)
		return
	}
	r.Records.Check(fault)
}

// IsOptional implements [config.OptionalSettings].
func (r *reading) IsOptional(setting string) bool {
	return setting == "REGISTRAR_ADDR" || r.RegistrarAddr != ""
}

// reader reads users.
type reader interface {
	get(ctx context.Context, n named) (*registrarv1.User, error)
	list(ctx context.Context, r *registrarv1.ListUsersRequest) (*registrarv1.ListUsersResponse, error)
	// watch calls send for each message until send fails or the stream breaks.
	watch(ctx context.Context, r *registrarv1.WatchUsersRequest, send func(*registrarv1.WatchUsersResponse) error) error
}

// open returns a reader, the store if the reader reads Redis, and a function that
// closes both.
func (r *reading) open(ctx context.Context) (reader, *store.Store, func(), error) {
	if r.RegistrarAddr != "" {
		connection, err := r.Connect()
		if err != nil {
			return nil, nil, nil, err
		}
		return remote{registrarv1.NewRegistrarServiceClient(connection)}, nil, func() { _ = connection.Close() }, nil
	}
	grants, err := r.Open(ctx)
	if err != nil {
		return nil, nil, nil, err
	}
	return direct{grants, registrar.NewUsers(grants)}, grants, func() { _ = r.Close() }, nil
}

// remote reads users from the registrar.
type remote struct {
	client registrarv1.RegistrarServiceClient
}

func (r remote) get(ctx context.Context, n named) (*registrarv1.User, error) {
	response, err := r.client.GetUser(ctx, &registrarv1.GetUserRequest{UserId: n.User, ZoomApp: n.App})
	return response.GetUser(), err
}

func (r remote) list(ctx context.Context, request *registrarv1.ListUsersRequest) (*registrarv1.ListUsersResponse, error) {
	return r.client.ListUsers(ctx, request)
}

func (r remote) watch(ctx context.Context, request *registrarv1.WatchUsersRequest, send func(*registrarv1.WatchUsersResponse) error) error {
	stream, err := r.client.WatchUsers(ctx, request)
	if err != nil {
		return err
	}
	for {
		message, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := send(message); err != nil {
			return err
		}
	}
}

// direct reads users from Redis.
type direct struct {
	grants *store.Store
	users  *registrar.Users
}

func (d direct) get(ctx context.Context, n named) (*registrarv1.User, error) {
	g, err := findGrant(ctx, d.grants, n)
	if err != nil {
		return nil, err
	}
	return d.users.Get(ctx, g.ID)
}

func (d direct) list(ctx context.Context, r *registrarv1.ListUsersRequest) (*registrarv1.ListUsersResponse, error) {
	return d.users.List(ctx, r)
}

func (d direct) watch(ctx context.Context, r *registrarv1.WatchUsersRequest, send func(*registrarv1.WatchUsersResponse) error) error {
	return d.users.Watch(ctx, r, send)
}

// userObject returns a user in JSON: the fields of the API's User that are set, by
// their names there, and the grant's id.
func userObject(u *registrarv1.User) map[string]any {
	object := map[string]any{"state": u.GetState().String(), "grant": grantOf(u)}
	u.ProtoReflect().Range(func(field protoreflect.FieldDescriptor, value protoreflect.Value) bool {
		switch {
		case field.Enum() != nil:
			object[string(field.Name())] = string(field.Enum().Values().ByNumber(value.Enum()).Name())
		case field.Message() != nil:
			object[string(field.Name())] = asTime(value)
		default:
			object[string(field.Name())] = value.Interface()
		}
		return true
	})
	return object
}

// userRows prints the fields of the API's User, each in a row.
func userRows(rows *table, u *registrarv1.User) {
	fields := u.ProtoReflect().Descriptor().Fields()
	for i := range fields.Len() {
		field, value := fields.Get(i), u.ProtoReflect().Get(fields.Get(i))
		text := ""
		switch {
		case field.Enum() != nil:
			text = word(string(field.Enum().Values().ByNumber(value.Enum()).Name()))
		case field.Message() == nil:
			text = value.String()
		case u.ProtoReflect().Has(field):
			text = moment(asTime(value))
		}
		rows.row(strings.ReplaceAll(string(field.Name()), "_", " "), text)
	}
}

// asTime returns a field of type Timestamp; a User has no other messages.
func asTime(value protoreflect.Value) time.Time {
	at, _ := value.Message().Interface().(*timestamppb.Timestamp)
	return at.AsTime()
}

func grantOf(u *registrarv1.User) grant.ID { return grant.NewID(u.GetZoomApp(), u.GetUserId()) }

// agoOf returns how far a time is from now, "" if it is not set.
func agoOf(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return ago(t.AsTime())
}

// word returns a state for text output.
func word(state string) string {
	return strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(state, "STATE_"), "_", " "))
}

// fromState returns the state that a flag names. any: STATE_UNSPECIFIED.
func fromState(text string) registrarv1.State {
	return registrarv1.State(registrarv1.State_value["STATE_"+strings.ToUpper(text)])
}

// explain returns an error of the registrar in the words of text output.
func explain(err error) error {
	if errors.Is(err, grant.ErrNotFound) {
		return errors.New("there is no such user")
	}
	st, ok := status.FromError(err)
	if err == nil || !ok {
		return err
	}
	switch st.Code() {
	case codes.NotFound:
		return errors.New(st.Message())
	case codes.PermissionDenied, codes.Unauthenticated:
		return fmt.Errorf("the registrar denies this client: %s (see GRPC_POLICY_FILE)", st.Message())
	case codes.Unavailable:
		return fmt.Errorf("the registrar is unavailable: %s", st.Message())
	}
	return fmt.Errorf("the registrar returned %s: %s", st.Code(), st.Message())
}

type usersList struct {
	State string `enum:"any,pending,active,degraded,reauthorization_required,deleting" default:"any" help:"State of the users: pending, active, degraded, reauthorization_required or deleting. any: all states."`
	Limit int    `default:"0" help:"Maximum number of users. 0: no limit."`
	reading
}

// Help implements [kong.HelpProvider].
func (*usersList) Help() string {
	return `Reads from the registrar if REGISTRAR_ADDR is set, or else from Redis.

Examples:

  tokenctl users list --state degraded

  tokenctl users list -o json | jq -r 'select(.reason | test("unhealthy")?) | .user_id'`
}

func (u *usersList) run(ctx context.Context, s *session) error {
	users, _, closing, err := u.open(ctx)
	if err != nil {
		return err
	}
	defer closing()
	rows := s.table("USER", "APP", "STATE", "REFRESHED", "EXPIRES", "REASON")
	defer rows.flush()
	seen := 0
	for token := ""; ; {
		size := 500
		if u.Limit > 0 {
			size = min(size, u.Limit-seen)
		}
		page, err := users.list(ctx, &registrarv1.ListUsersRequest{State: fromState(u.State), PageSize: int32(size), PageToken: token})
		if err != nil {
			return explain(err)
		}
		for _, one := range page.GetUsers() {
			seen++
			if err := s.object(userObject(one)); err != nil {
				return err
			}
			rows.row(one.GetUserId(), one.GetZoomApp(), word(one.GetState().String()),
				agoOf(one.GetLastRefreshTime()), agoOf(one.GetAccessTokenExpireTime()), one.GetReason())
		}
		if token = page.GetNextPageToken(); token == "" || seen == u.Limit {
			break
		}
	}
	rows.flush()
	if seen == 0 {
		s.say("no users")
	}
	return nil
}

// named has the arguments that name a user.
type named struct {
	User string `arg:"" help:"Id of the user, as internal services use it."`
	App  string `name:"zoom-app" help:"Name of the Zoom app. Empty: the only app."`
}

type usersGet struct {
	named
	reading
}

// Help implements [kong.HelpProvider].
func (*usersGet) Help() string {
	return `Reads from the registrar if REGISTRAR_ADDR is set, or else from Redis. From Redis it also shows the next renewal and what delays it.

Example:

  tokenctl users get ann`
}

// renewalStatus is the state of the renewal in JSON.
type renewalStatus struct {
	Due        time.Time `json:"due_time,omitzero"`
	Failures   int       `json:"failures"`
	RetryAt    time.Time `json:"retry_time,omitzero"`
	LeaseUntil time.Time `json:"lease_end_time,omitzero"`
	Uncertain  bool      `json:"uncertain"`
	Unfinished time.Time `json:"registrar_work_time,omitzero"`
}

func (u *usersGet) run(ctx context.Context, s *session) error {
	users, grants, closing, err := u.open(ctx)
	if err != nil {
		return err
	}
	defer closing()
	found, err := users.get(ctx, u.named)
	if err != nil {
		return explain(err)
	}
	object := userObject(found)
	var renewal *renewalStatus
	if grants != nil {
		renewals, err := grants.ReadRenewals(ctx, []grant.ID{grantOf(found)})
		if err != nil {
			return err
		}
		r := renewals[0]
		renewal = &renewalStatus{r.Due, r.Failures, r.RetryAt, r.LeaseUntil, r.Uncertain, r.Work}
		object["renewal"] = renewal
	}
	if err := s.object(object); err != nil {
		return err
	}
	rows := s.table()
	userRows(rows, found)
	if r := renewal; r != nil {
		rows.row("next renewal", moment(r.Due))
		if r.Failures > 0 {
			rows.row("failed", fmt.Sprintf("%d times; next try %s", r.Failures, ago(r.RetryAt)))
		}
		if r.Uncertain {
			rows.row("uncertain", "a response from Zoom was lost: the refresh token may be spent")
		}
		if !r.Unfinished.IsZero() {
			rows.row("registrar", "work pending; continues "+ago(r.Unfinished))
		}
	}
	rows.row("grant", string(grantOf(found)))
	rows.flush()
	return nil
}

type usersWatch struct {
	State string `enum:"any,pending,active,degraded,reauthorization_required,deleting" default:"any" help:"State of the users after the change. any: all states."`
	reading
}

// Help implements [kong.HelpProvider].
func (*usersWatch) Help() string {
	return `Reads from the registrar if REGISTRAR_ADDR is set, or else from Redis. A renewed token is not a change. After a lost connection it continues without a gap.

Example:

  tokenctl users watch --state degraded`
}

func (u *usersWatch) run(ctx context.Context, s *session) error {
	users, _, closing, err := u.open(ctx)
	if err != nil {
		return err
	}
	defer closing()
	last := ""
	for resume := ""; ; {
		resumable, err := u.watch(ctx, s, users, &resume, &last)
		switch {
		case ctx.Err() != nil:
			return nil
		case resume == "" || !resumable:
			return explain(err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Second):
		}
	}
}

// mayResume reports whether a watch that ended with err can continue.
func mayResume(err error) bool {
	if st, remote := status.FromError(err); remote {
		return st.Code() == codes.Unavailable
	}
	return !errors.Is(err, store.ErrPositionExpired)
}

// watch prints changes until the stream breaks, and reports whether it can resume.
func (u *usersWatch) watch(ctx context.Context, s *session, users reader, resume, last *string) (resumable bool, err error) {
	var printing error
	request := &registrarv1.WatchUsersRequest{State: fromState(u.State), ResumeToken: *resume}
	err = users.watch(ctx, request, func(message *registrarv1.WatchUsersResponse) error {
		if *resume == "" { // the first message: later changes are not missed
			s.say("watching for changes")
		}
		*resume = message.GetResumeToken()
		printing = u.print(s, message, last)
		return printing
	})
	return printing == nil && mayResume(err), err
}

// print prints a change, unless its line is the same as the last.
func (*usersWatch) print(s *session, message *registrarv1.WatchUsersResponse, last *string) error {
	if message.GetUser() == nil {
		return nil
	}
	user, now := message.GetUser(), time.Now()
	object, state := userObject(user), word(user.GetState().String())
	object["time"], object["removed"] = now.UTC(), message.GetRemoved()
	if message.GetRemoved() {
		state, object["state"] = "removed", ""
	}
	line := fmt.Sprintf("%s (%s)  %s  %s", printable(user.GetUserId()), printable(user.GetZoomApp()), state, strings.TrimPrefix(printable(user.GetReason()), "-"))
	if line == *last {
		return nil
	}
	*last = line
	if err := s.object(object); err != nil {
		return err
	}
	s.say("%s  %s", now.UTC().Format("15:04:05"), line)
	return nil
}

type usersDeregister struct {
	named
	Revoke bool `name:"revoke-grant" help:"Revocation of the grant at Zoom too. Not if internal services use it themselves."`
	confirmed
	config.Registrar
}

// Help implements [kong.HelpProvider].
func (*usersDeregister) Help() string {
	return `The registrar removes the user, under its policy and with a line in its audit log. To return, the user must consent again.

Example:

  tokenctl users deregister ann --yes`
}

func (u *usersDeregister) run(ctx context.Context, s *session) error {
	if err := u.confirm(ctx, s, fmt.Sprintf("Removing user %s: the credential at Recall, the grant and its secrets.", printable(u.User))); err != nil {
		return err
	}
	connection, err := u.Connect()
	if err != nil {
		return err
	}
	defer func() { _ = connection.Close() }()
	_, err = registrarv1.NewRegistrarServiceClient(connection).DeregisterUser(ctx,
		&registrarv1.DeregisterUserRequest{UserId: u.User, ZoomApp: u.App, RevokeGrant: u.Revoke})
	if err != nil {
		return explain(err)
	}
	s.say("%s removed", printable(u.User))
	return s.object(map[string]any{"user_id": u.User, "removed": true})
}

type usersRefresh struct {
	named
	Wait time.Duration `default:"30s" help:"Maximum wait for the renewal. 0: no wait."`
	app.Records
}

// Help implements [kong.HelpProvider].
func (*usersRefresh) Help() string {
	return `Makes the grant due now and ends its backoff; a token server then renews the token as usual. tokenctl handles no token. The previous access token ends immediately. It refuses in the first tenth of a token's lifetime, to prevent loops, and if the user must consent again.

Example:

  tokenctl users refresh ann`
}

func (u *usersRefresh) run(ctx context.Context, s *session) error {
	grants, err := u.Open(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = u.Close() }()
	before, err := findGrant(ctx, grants, u.named)
	if err != nil {
		return err
	}
	err = grants.MakeDue(ctx, before.ID)
	switch {
	case errors.Is(err, grant.ErrFresh):
		again := grant.MatureTime(before.Refreshed, before.AccessExpires)
		return fmt.Errorf("users refresh: %w: it was renewed %s, and can be renewed again %s", err, ago(before.Refreshed), ago(again))
	case err != nil:
		return fmt.Errorf("users refresh: %w", err)
	}
	result := map[string]any{"user_id": before.User, "zoom_app": before.App, "renewed": false}
	if u.Wait == 0 {
		s.say("%s is due now", printable(before.User))
		return s.object(result)
	}
	ctx, cancel := context.WithTimeout(ctx, u.Wait)
	defer cancel()
	for {
		now, err := grants.Get(ctx, before.ID)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
		case err != nil:
			return err
		case now.Refreshed.After(before.Refreshed):
			result["renewed"], result["access_token_expire_time"] = true, now.AccessExpires
			s.say("renewed; the token expires %s", moment(now.AccessExpires))
			return s.object(result)
		case now.Version != before.Version && now.State != grant.StateActive && now.State != grant.StatePending:
			return fmt.Errorf("users refresh: renewal failed: the user is %s: %s", word(string(now.State)), now.Reason)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("users refresh: no renewal by a token server within %v: see tokenctl doctor", u.Wait)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// findGrant returns the grant of a user. The Zoom app may be empty if there is only
// one.
func findGrant(ctx context.Context, grants *store.Store, n named) (grant.Grant, error) {
	app := n.App
	if app == "" {
		apps, err := grants.CountByApp(ctx)
		if err != nil {
			return grant.Grant{}, err
		}
		if len(apps) > 1 {
			return grant.Grant{}, config.Faults{"--zoom-app: is required with several Zoom apps"}
		}
		for app = range apps {
		}
	}
	g, err := grants.Get(ctx, grant.NewID(app, n.User))
	if err != nil {
		return grant.Grant{}, fmt.Errorf("the user %q: %w", n.User, err)
	}
	return g, nil
}
