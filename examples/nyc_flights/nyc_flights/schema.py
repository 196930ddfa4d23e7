"""The tables that the import fills, in a schema of their own: they hold one load, and the next one replaces it."""

from typing import Final

SCHEMA: Final = "staging"

DDL: Final = """
CREATE SCHEMA IF NOT EXISTS staging;

CREATE TABLE IF NOT EXISTS staging.airlines (
    carrier text PRIMARY KEY,
    name    text NOT NULL
);

CREATE TABLE IF NOT EXISTS staging.airports (
    faa   text PRIMARY KEY,
    name  text NOT NULL,
    lat   double precision NOT NULL,
    lon   double precision NOT NULL,
    alt   integer NOT NULL,
    tz    integer NOT NULL,
    dst   text NOT NULL,
    tzone text
);

CREATE TABLE IF NOT EXISTS staging.planes (
    tailnum      text PRIMARY KEY,
    year         integer,
    type         text NOT NULL,
    manufacturer text NOT NULL,
    model        text NOT NULL,
    engines      integer NOT NULL,
    seats        integer NOT NULL,
    speed        integer,
    engine       text NOT NULL
);

CREATE TABLE IF NOT EXISTS staging.weather (
    origin     text,
    year       integer NOT NULL,
    month      integer NOT NULL,
    day        integer NOT NULL,
    hour       integer NOT NULL,
    temp       double precision,
    dewp       double precision,
    humid      double precision,
    wind_dir   integer,
    wind_speed double precision,
    wind_gust  double precision,
    precip     double precision,
    pressure   double precision,
    visib      double precision,
    time_hour  timestamptz,
    PRIMARY KEY (origin, time_hour)
);

CREATE TABLE IF NOT EXISTS staging.flights (
    year           integer NOT NULL,
    month          integer NOT NULL,
    day            integer NOT NULL,
    dep_time       integer,
    sched_dep_time integer NOT NULL,
    dep_delay      integer,
    arr_time       integer,
    sched_arr_time integer NOT NULL,
    arr_delay      integer,
    carrier        text,
    flight         integer,
    tailnum        text,
    origin         text,
    dest           text NOT NULL,
    air_time       integer,
    distance       integer NOT NULL,
    hour           integer NOT NULL,
    minute         integer NOT NULL,
    time_hour      timestamptz,
    PRIMARY KEY (carrier, flight, origin, time_hour)
);
"""
