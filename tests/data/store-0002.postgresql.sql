--
-- PostgreSQL database dump
--


-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)

SET statement_timeout = 0;
SET lock_timeout = 0;
SET idle_in_transaction_session_timeout = 0;
SET client_encoding = 'UTF8';
SET standard_conforming_strings = on;
SELECT pg_catalog.set_config('search_path', '', false);
SET check_function_bodies = false;
SET xmloption = content;
SET client_min_messages = warning;
SET row_security = off;

SET default_tablespace = '';

SET default_table_access_method = heap;

--
-- Name: audit; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.audit (
    uid text NOT NULL COLLATE pg_catalog."C",
    workspace text NOT NULL COLLATE pg_catalog."C",
    actor text NOT NULL COLLATE pg_catalog."C",
    action text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    details text NOT NULL,
    time_ms bigint NOT NULL
);


--
-- Name: changes; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.changes (
    revision bigint NOT NULL,
    workspace text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    uid text NOT NULL COLLATE pg_catalog."C",
    deleted integer NOT NULL
);


--
-- Name: counter; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.counter (
    id integer NOT NULL,
    revision bigint NOT NULL
);


--
-- Name: events; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.events (
    uid text NOT NULL COLLATE pg_catalog."C",
    workspace text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    object_uid text COLLATE pg_catalog."C",
    type text NOT NULL COLLATE pg_catalog."C",
    reason text NOT NULL COLLATE pg_catalog."C",
    message text NOT NULL,
    digest text NOT NULL COLLATE pg_catalog."C",
    count bigint NOT NULL,
    first_ms bigint NOT NULL,
    last_ms bigint NOT NULL
);


--
-- Name: leases; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.leases (
    name text NOT NULL COLLATE pg_catalog."C",
    holder text NOT NULL COLLATE pg_catalog."C",
    epoch bigint NOT NULL,
    renewals bigint NOT NULL,
    ttl_ms bigint NOT NULL,
    expires_ms bigint NOT NULL
);


--
-- Name: lepton_ai_version; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.lepton_ai_version (
    version_num character varying(32) NOT NULL
);


--
-- Name: records; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.records (
    uid text NOT NULL COLLATE pg_catalog."C",
    workspace text NOT NULL COLLATE pg_catalog."C",
    kind text NOT NULL COLLATE pg_catalog."C",
    name text NOT NULL COLLATE pg_catalog."C",
    generation bigint NOT NULL,
    revision bigint NOT NULL,
    spec text NOT NULL,
    status text NOT NULL,
    owner_uid text COLLATE pg_catalog."C",
    created_ms bigint NOT NULL,
    updated_ms bigint NOT NULL,
    deleting_ms bigint,
    state text DEFAULT ''::text NOT NULL COLLATE pg_catalog."C"
);


--
-- Name: segments; Type: TABLE; Schema: public; Owner: -
--

CREATE TABLE public.segments (
    uid text NOT NULL COLLATE pg_catalog."C",
    workspace text NOT NULL COLLATE pg_catalog."C",
    owner_kind text NOT NULL COLLATE pg_catalog."C",
    owner text NOT NULL COLLATE pg_catalog."C",
    replica_uid text NOT NULL COLLATE pg_catalog."C",
    replica_name text NOT NULL COLLATE pg_catalog."C",
    path text NOT NULL COLLATE pg_catalog."C",
    first_ns bigint NOT NULL,
    last_ns bigint NOT NULL,
    lines bigint NOT NULL,
    size_bytes bigint NOT NULL
);


--
-- Data for Name: audit; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: changes; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.changes VALUES (1, 'default', 'deployment', 'movies', '01a21202-b836-773b-82ee-7420f2225b4d', 0);
INSERT INTO public.changes VALUES (2, 'default', 'deployment', 'movies', '01a21202-b836-773b-82ee-7420f2225b4d', 0);
INSERT INTO public.changes VALUES (3, 'default', 'deployment', 'movies', '01a21202-b836-773b-82ee-7420f2225b4d', 0);
INSERT INTO public.changes VALUES (4, 'default', 'replica', 'movies-1', '01a21202-b83f-7174-9d47-fe855470912d', 0);
INSERT INTO public.changes VALUES (5, 'default', 'job', 'gone', '01a21202-b841-7170-9722-e008550306a0', 0);
INSERT INTO public.changes VALUES (6, 'default', 'job', 'gone', '01a21202-b841-7170-9722-e008550306a0', 1);
INSERT INTO public.changes VALUES (7, 'default', 'job', 'train', '01a21202-b844-7272-b71c-4b2c1090210a', 0);
INSERT INTO public.changes VALUES (8, 'default', 'job', 'train', '01a21202-b844-7272-b71c-4b2c1090210a', 0);
INSERT INTO public.changes VALUES (9, 'other', 'deployment', 'movies', '01a21202-b847-7766-bc42-5e4637021b7f', 0);


--
-- Data for Name: counter; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.counter VALUES (1, 9);


--
-- Data for Name: events; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Data for Name: leases; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.leases VALUES ('control', 'old', 1, 0, 5000, 1700000005000);


--
-- Data for Name: lepton_ai_version; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.lepton_ai_version VALUES ('0002');


--
-- Data for Name: records; Type: TABLE DATA; Schema: public; Owner: -
--

INSERT INTO public.records VALUES ('01a21202-b836-773b-82ee-7420f2225b4d', 'default', 'deployment', 'movies', 2, 3, '{"large":9007199254740991,"nested":[1,2.5,null,true,{"a":{}}],"release":2,"text":"\u7535\u5f71 \u00e9 \ud83c\udfac \\ \"quoted\" it''s\n"}', '{"ready":1}', NULL, 1700000000000, 1700000001000, NULL, '');
INSERT INTO public.records VALUES ('01a21202-b83f-7174-9d47-fe855470912d', 'default', 'replica', 'movies-1', 1, 4, '{}', '{}', '01a21202-b836-773b-82ee-7420f2225b4d', 1700000001000, 1700000001000, NULL, '');
INSERT INTO public.records VALUES ('01a21202-b844-7272-b71c-4b2c1090210a', 'default', 'job', 'train', 1, 8, '{"a":1}', '{"state":"running"}', NULL, 1700000001000, 1700000001000, 1700000001000, 'running');
INSERT INTO public.records VALUES ('01a21202-b847-7766-bc42-5e4637021b7f', 'other', 'deployment', 'movies', 1, 9, '{}', '{}', NULL, 1700000001000, 1700000001000, NULL, '');


--
-- Data for Name: segments; Type: TABLE DATA; Schema: public; Owner: -
--



--
-- Name: audit audit_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (uid);


--
-- Name: changes changes_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.changes
    ADD CONSTRAINT changes_pkey PRIMARY KEY (revision);


--
-- Name: counter counter_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.counter
    ADD CONSTRAINT counter_pkey PRIMARY KEY (id);


--
-- Name: events events_by_digest; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_by_digest UNIQUE (workspace, digest);


--
-- Name: events events_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.events
    ADD CONSTRAINT events_pkey PRIMARY KEY (uid);


--
-- Name: leases leases_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.leases
    ADD CONSTRAINT leases_pkey PRIMARY KEY (name);


--
-- Name: lepton_ai_version lepton_ai_version_pkc; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.lepton_ai_version
    ADD CONSTRAINT lepton_ai_version_pkc PRIMARY KEY (version_num);


--
-- Name: records records_by_name; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.records
    ADD CONSTRAINT records_by_name UNIQUE (workspace, kind, name);


--
-- Name: records records_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.records
    ADD CONSTRAINT records_pkey PRIMARY KEY (uid);


--
-- Name: segments segments_by_path; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.segments
    ADD CONSTRAINT segments_by_path UNIQUE (path);


--
-- Name: segments segments_pkey; Type: CONSTRAINT; Schema: public; Owner: -
--

ALTER TABLE ONLY public.segments
    ADD CONSTRAINT segments_pkey PRIMARY KEY (uid);


--
-- Name: audit_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX audit_by_time ON public.audit USING btree (time_ms);


--
-- Name: audit_by_workspace; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX audit_by_workspace ON public.audit USING btree (workspace, uid);


--
-- Name: events_by_object; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_by_object ON public.events USING btree (workspace, kind, name);


--
-- Name: events_by_time; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX events_by_time ON public.events USING btree (workspace, last_ms);


--
-- Name: records_by_kind; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX records_by_kind ON public.records USING btree (kind, uid);


--
-- Name: records_by_owner; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX records_by_owner ON public.records USING btree (owner_uid, kind, uid);


--
-- Name: records_by_state; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX records_by_state ON public.records USING btree (kind, state, workspace, uid);


--
-- Name: segments_by_age; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX segments_by_age ON public.segments USING btree (last_ns);


--
-- Name: segments_by_owner; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX segments_by_owner ON public.segments USING btree (workspace, owner_kind, owner, first_ns);


--
-- Name: segments_by_replica; Type: INDEX; Schema: public; Owner: -
--

CREATE INDEX segments_by_replica ON public.segments USING btree (workspace, replica_uid);


--
-- PostgreSQL database dump complete
--


