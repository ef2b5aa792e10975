-- One row per question that has at least two different answers; exact duplicates count once, under their smallest id.
with keyed as (
    select id, question, answer,
           case $normalise
               when 'exact' then question
               when 'trim'  then trim(question)
               when 'lower' then lower(trim(question))
               else trim(regexp_replace(lower(question), '[^\p{L}\p{N}]+', ' ', 'g'))
           end as key
    from rows
),
candidates as (
    select key, answer, min(id) as id, min(question) as question
    from keyed
    group by key, answer
),
members as (
    select key, list(id order by id) as every_id from keyed group by key
)
select min(c.id) as id,
       arg_min(c.question, c.id) as question,
       list(c.id order by c.id) as ids,
       list(c.answer order by c.id) as answers,
       any_value(m.every_id) as every_id
from candidates c join members m using (key)
group by c.key
having count(*) > 1
