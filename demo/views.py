"""The tables and the views, in SQL."""

from __future__ import annotations

TABLES = {
    "airlines": "carrier text, name text",
    "airports": "faa text, name text, lat double precision, lon double precision, alt integer, tz integer,"
    " dst text, tzone text",
    "planes": "tailnum text, year integer, type text, manufacturer text, model text, engines integer, seats integer,"
    " speed integer, engine text",
    "weather": "origin text, year integer, month integer, day integer, hour integer, temp double precision,"
    " dewp double precision, humid double precision, wind_dir integer, wind_speed double precision,"
    " wind_gust double precision, precip double precision, pressure double precision, visib double precision,"
    " time_hour timestamp",
    "flights": "id integer, year integer, month integer, day integer, dep_time integer, sched_dep_time integer,"
    " dep_delay integer, arr_time integer, sched_arr_time integer, arr_delay integer, carrier text, flight integer,"
    " tailnum text, origin text, dest text, air_time integer, distance integer, hour integer, minute integer,"
    " time_hour timestamp",
    "airborne": "flight_id integer, tailnum text, carrier text, origin text, dest text, took_off timestamptz,"
    " lands timestamptz",
}

VIEWS = {
    "delays": """
        SELECT a.name AS airline, f.hour, count(*) AS flights, avg(f.dep_delay) AS delay,
               avg(w.wind_speed) AS wind, min(w.visib) AS visibility
        FROM flights f
        JOIN weather w ON w.origin = f.origin AND w.time_hour = f.time_hour
        JOIN airlines a ON a.carrier = f.carrier
        WHERE f.dep_delay IS NOT NULL
        GROUP BY a.name, f.hour""",
    "worst_routes": """
        SELECT origin, dest, count(*) AS flights, avg(arr_delay) AS delay
        FROM flights WHERE arr_delay IS NOT NULL
        GROUP BY origin, dest HAVING count(*) >= 100
        ORDER BY delay DESC, origin, dest LIMIT 10""",
    "in_the_air": """
        SELECT b.flight_id, b.carrier, b.tailnum, p.manufacturer, p.seats, b.origin, b.dest
        FROM airborne b LEFT JOIN planes p ON p.tailnum = b.tailnum
        WHERE mz_now() >= b.took_off AND mz_now() < b.lands""",
    "in_the_air_by_airline": """
        SELECT a.name AS airline, count(*) AS planes, sum(i.seats) AS seats
        FROM in_the_air i JOIN airlines a ON a.carrier = i.carrier
        GROUP BY a.name""",
}

INDEXES = {"flights_by_id": "flights (id)"}
