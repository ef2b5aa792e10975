select (select count(*) from original) as rows_in,
       (select coalesce(sum(len(every_id)), 0) from groups) as rows_judged,
       (select count(*) from deduped) as rows_chosen,
       rows_in - rows_judged + rows_chosen - (select count(*) from output) as exact_duplicates_dropped,
       (select count(*) from output) as rows_out
